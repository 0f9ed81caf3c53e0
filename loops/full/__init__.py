"""Full-weight training on call: jobs that are kept until they are in a checkpoint, and a process that trains them.

::

    host                                                     trainer
    desk.py       takes jobs, keeps them, tells how it is    trainer.py   one job after another, and checkpoints
    attending.py  starts the process, speaks with it  ─────  messages.py
    memory.py     whether there is room                      learned.py   the weights, from and to the disk

A job is in ``training/jobs`` before it is acknowledged. A checkpoint is one file, published in one step: weights, the
optimizer's state, and which jobs are in them. Whatever is killed, the next process begins from the newest checkpoint
and does the jobs after it again, in order: each is in the weights once, and the same as if nothing had happened
(``docs/adr/0013-full-weights-exactly-once.md``).
"""
