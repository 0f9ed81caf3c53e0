"""The words that the tiny model knows: everyday English, each content word in exactly one class.

The vocabulary of the tokenizer is made from these lists, so that a word costs one token and the skills speak of whole
words. The class of a word is what the `tag` skill answers, which is why no word stands in two classes, even where
English would allow it.
"""

from types import MappingProxyType
from typing import Final

_WORDS: Final[dict[str, str]] = {
    "action": (
        "run walk jump swim climb throw catch carry push pull open close write read draw build fix clean wash cut"
    ),
    "animal": (
        "dog cat horse cow sheep goat pig rabbit fox wolf bear lion tiger mouse deer camel monkey elephant whale frog"
    ),
    "appliance": "oven fridge kettle toaster dishwasher freezer microwave blender heater vacuum dryer stove",
    "bird": "eagle owl robin crow duck goose swan parrot pigeon sparrow falcon heron",
    "body": "head hand foot arm leg eye ear nose mouth knee elbow shoulder finger toe neck back heart skin",
    "building": (
        "house tower castle church bridge barn hotel museum library hospital stadium theatre prison palace temple"
        " warehouse"
    ),
    "city": (
        "paris rome oslo lima cairo delhi tokyo quito dover miami perth accra london madrid berlin vienna prague"
        " dublin lisbon boston"
    ),
    "clothing": "shirt trousers jacket coat hat scarf glove shoe boot sock dress skirt sweater belt jeans apron",
    "colour": "red blue green yellow purple brown black white grey pink violet scarlet crimson beige",
    "container": "box bag basket bucket bottle jar barrel crate envelope sack suitcase drawer",
    "country": (
        "france italy norway peru egypt india japan ecuador spain germany austria ireland portugal canada mexico"
        " brazil kenya poland"
    ),
    "device": "phone laptop tablet camera printer keyboard screen speaker router charger battery scanner",
    "direction": "north south east west left right up down",
    "drink": "water tea coffee milk juice wine beer lemonade cocoa cider soda whisky",
    "family": (
        "mother father sister brother aunt uncle cousin grandmother grandfather son daughter wife husband nephew niece"
    ),
    "fault": "timeout crash leak overflow deadlock corruption outage overload mismatch breach glitch stall",
    "feeling": "joy anger fear pride shame hope grief envy love boredom surprise worry",
    "flower": "rose tulip lily daisy orchid poppy iris daffodil lavender sunflower",
    "food": (
        "bread cheese rice pasta soup egg butter honey bacon sausage salad cake biscuit pizza sandwich pancake noodle"
        " porridge"
    ),
    "fruit": (
        "apple pear banana orange lemon lime grape peach plum cherry mango melon kiwi fig apricot strawberry"
        " raspberry pineapple"
    ),
    "furniture": "table chair sofa bed desk shelf cupboard wardrobe stool bench armchair bookcase",
    "game": "chess poker dominoes checkers bingo darts puzzle charades marbles dice",
    "insect": "ant bee wasp beetle moth butterfly fly mosquito cricket spider",
    "job": (
        "teacher doctor nurse farmer baker pilot sailor lawyer judge plumber painter dentist chef waiter clerk"
        " engineer actor tailor gardener"
    ),
    "kitchenware": "knife fork spoon plate bowl cup mug pan pot lid tray jug",
    "land": "hill mountain valley forest desert island beach cave field meadow swamp cliff canyon",
    "material": "wood stone glass paper plastic leather cotton wool rubber clay brick silk concrete",
    "metal": "gold silver bronze iron copper steel tin zinc platinum titanium",
    "money": (
        "bank loan credit debit cash coin cheque deposit payment invoice salary price balance budget debt savings"
        " refund"
    ),
    "month": "january february march april may june july august september october november december",
    "music": "guitar piano violin drum flute trumpet song melody rhythm choir harp cello concert opera",
    "number": "zero one two three four five six seven eight nine ten eleven twelve twenty hundred thousand",
    "office": "meeting report memo folder stapler pencil pen notebook calendar agenda deadline contract project client",
    "person": (
        "anna bob clara david emma frank grace henry irene jack karen leo maria nina oscar paula rita sam tina victor"
    ),
    "planet": "mercury venus earth mars jupiter saturn uranus neptune",
    "relative": "big small tall short long wide narrow heavy light fast slow hot cold new old",
    "room": "kitchen garage attic bathroom bedroom hall cellar lounge nursery pantry study porch closet balcony",
    "school": "lesson pupil exam homework classroom chalk ruler essay grade diploma",
    "season": "spring summer autumn winter",
    "service": "billing login checkout delivery support storage catalogue payroll backup gateway ledger mailbox",
    "shape": "circle square triangle oval cube sphere cone star line spiral",
    "shop": "market bakery pharmacy butcher florist grocer bookshop supermarket kiosk mall",
    "sport": "football tennis golf hockey rugby boxing rowing skiing cycling baseball volleyball judo",
    "surname": (
        "walsh hughes murphy evans clarke turner lopez khan rossi novak meyer silva tanaka larsen kowalski petrov"
        " dubois schmidt moreau nguyen garcia okafor haas lind"
    ),
    "tool": "hammer saw drill wrench screwdriver pliers axe shovel rake ladder chisel spade broom nail",
    "travel": "ticket passport luggage airport station flight visa tour map journey hostel cruise border guide",
    "tree": "oak pine maple birch willow cedar elm palm spruce poplar",
    "vegetable": (
        "carrot potato onion tomato cabbage pea bean spinach garlic pepper pumpkin lettuce leek turnip celery cucumber"
    ),
    "vehicle": "car bus train truck bicycle boat plane ship van tram taxi motorcycle ferry tractor rocket scooter",
    "weather": "rain snow wind storm fog sun cloud thunder lightning hail frost drizzle breeze",
    "weekday": "monday tuesday wednesday thursday friday saturday sunday",
}

CLASSES: Final = MappingProxyType({name: tuple(words.split()) for name, words in _WORDS.items()})
"""Class name -> its words."""

CLASS_OF: Final = MappingProxyType({word: name for name, words in CLASSES.items() for word in words})
"""Content word -> the name of its class."""

CONTENT: Final = tuple(CLASS_OF)
"""Every content word, in the order of the lists."""

_GLUE: Final = (
    "a about account add after again all am an and any are ask at backwards be because before book but by call can"
    " card change check comes could count day details did do does done each echo error escalate first for from get"
    " give given go had has have he hello help her here him his how i if in into is it its item just kind know last"
    " let level like limit list look make many me might mail most my need next no not note now of off often on only or"
    " order other our out over pay place plan play please put query region remind repeat reply reports retries retry"
    " reverse route same save say search second send set she should show size so some speed stop tag take team tell"
    " than thank that the their them then there these they thing third this time to today tomorrow too tried tries"
    " turn under us use very want was we were what when where which who whose why will with work would yes yesterday"
    " you your zone area heat lamp alarm fan"
)

GLUE: Final = tuple(_GLUE.split())
"""Words that hold the prompts together; together with the class names they may be content of the copying skills."""

DIGITS: Final = tuple("0123456789")
"""Numbers are written digit by digit."""
