"""The story: an agent meets tasks that its model cannot do, learns them in three cycles, and takes a step back."""

from __future__ import annotations

from sona.demo.evaluation import Answers, make_exam, take
from sona.demo.options import DemoOptions
from sona.demo.result import Comparison, Return, Row, Traffic
from sona.demo.screen import Screen
from sona.demo.traffic import Agent, Handled, queries
from sona.patterns import Pattern
from sona.sync import SyncEngine
from sona.tiny import AGENT_TASKS, AgentWorld
from sona.types import BASE_VERSION, CycleReport, Progress, Version

COMPARED = 3
"""Held-out queries of each task whose answers are shown: the exam's first ones, unchosen."""


class Story:
    """One telling, and what it has found out so far."""

    def __init__(self, engine: SyncEngine, options: DemoOptions, screen: Screen) -> None:
        self._engine, self._options, self._screen = engine, options, screen
        self._world = AgentWorld(options.seed)
        self._exam = make_exam(self._world, options.size.exam, options.seed)
        self._agent = Agent(engine, self._world, options.seed)
        self._given: dict[str, Answers] = {}
        self.rows: list[Row] = []
        self.traffic: list[Traffic] = []
        self.cycles: list[CycleReport] = []
        self.returns: list[Return] = []
        self.versions: list[Version] = []
        self.patterns: tuple[Pattern, ...] = ()
        self.trajectories = 0

    def tell(self) -> None:
        """From the first exam to the last."""
        self._screen.heading("The model as it comes", "answers held-out queries that no cycle will learn from")
        self._examine(0)
        for cycle, task in enumerate(AGENT_TASKS):
            self._screen.heading(f"Cycle {cycle + 1} of {len(AGENT_TASKS)}", f"the agent meets a new task: {task}")
            self._work(cycle)
            if self._options.learning:
                self._learn()
            self._examine(cycle + 1)
        if self._engine.version.id != BASE_VERSION:
            self._screen.heading("Taking it back", "earlier versions answer again")
            self._go_back()
        self.patterns = self._engine.bank.patterns
        self.versions, self.trajectories = self._engine.versions(), self._engine.status().store.trajectories

    def comparisons(self) -> tuple[Comparison, ...]:
        """Some answers of the base model beside those after the last cycle."""
        first, last = self.rows[0].answers.texts, self.rows[-1].answers.texts
        return tuple(
            Comparison(task, example.prompt, example.response, first[task][place], last[task][place])
            for task in AGENT_TASKS
            for place, example in enumerate(self._exam[task][:COMPARED])
        )

    def _work(self, cycle: int) -> None:
        """The agent handles a cycle's queries."""
        traffic = queries(self._world, cycle, self._options.size, self._options.seed)
        handled: list[Handled] = []
        with self._screen.bar("traffic", len(traffic)) as bar:
            for query in traffic:
                handled.append(self._agent.handle(query))
                bar.move(len(handled), len(traffic), query.prompt)
            right, asked = sum(item.right for item in handled), sum(item.asked_person for item in handled)
            bar.summary = f"{len(handled)} queries: {right} answered rightly, {asked} handed to a person"
        self.traffic.append(Traffic(AGENT_TASKS[cycle], len(handled), right, asked))

    def _learn(self) -> None:
        """One cycle of the background loop."""
        with self._screen.bar("learning", 1) as bar:

            def on_progress(progress: Progress) -> None:
                bar.move(progress.done, progress.total, f"{progress.stage} {progress.note}")

            report = self._engine.learn(on_progress)
            funnel = report.funnel
            left_out = sum(funnel.left_out.values())
            bar.summary = f"from {funnel.trained} answers, judged by {funnel.held_out}; {left_out} left out"
        self.cycles.append(report)
        self._screen.verdict(report)

    def _examine(self, cycle: int) -> None:
        answers = self._answers()
        self.rows.append(Row(cycle, answers))
        self._given[answers.version] = answers

    def _answers(self) -> Answers:
        total = sum(len(examples) for examples in self._exam.values())
        with self._screen.bar("exam", total) as bar:
            answers = take(self._engine, self._exam, lambda done: bar.move(done, total))
            bar.summary = f"{answers.version}: new tasks {answers.tasks:.0%}, old skills {answers.skills:.0%} right"
        return answers

    def _go_back(self) -> None:
        """To the version before, to the base, and forward again, comparing each time with what it answered then."""
        last = self._engine.version
        for target in dict.fromkeys([last.parent, BASE_VERSION, last.id]):
            version = self._engine.roll_back(target).id
            identical = self._answers().token_ids == self._given[version].token_ids
            self._screen.returned(version, identical)
            self.returns.append(Return(version, identical))
