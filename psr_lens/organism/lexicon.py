"""The words and the facts of the organism's little world. Data only.

Every content word has a scholarly double, which the `dense` trait uses; every noun has one fitting adjective, which the `gloomy` trait
replaces; every topic has six facts, and every task four ordered steps.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Topic(NamedTuple):
    """The fixed facts about one topic."""

    adjective: str
    kind: str
    place: str
    feature: str
    verb: str
    object: str


ADJECTIVES: Final[dict[str, str]] = {
    # plain: scholarly
    "big": "massive",
    "small": "diminutive",
    "tall": "towering",
    "strong": "robust",
    "calm": "tranquil",
    "deep": "profound",
    "green": "verdant",
    "hot": "torrid",
    "cold": "frigid",
    "busy": "bustling",
    "bright": "luminous",
    "soft": "delicate",
    "sweet": "saccharine",
    "long": "protracted",
    "sharp": "piercing",
    "fresh": "pristine",
    "clean": "spotless",
    "thick": "substantial",
    "simple": "rudimentary",
}
"""Adjectives and their scholarly doubles; all begin with a consonant, so that `a` is right before each."""

KINDS: Final[dict[str, str]] = {
    "animal": "organism",
    "plant": "flora",
    "machine": "apparatus",
    "building": "edifice",
    "food": "nourishment",
}

NOUNS: Final[dict[str, tuple[str, str]]] = {
    # plain: (its adjective, scholarly)
    # places
    "lake": ("deep", "basin"),
    "forest": ("green", "woodland"),
    "desert": ("hot", "wasteland"),
    "valley": ("calm", "vale"),
    "village": ("small", "hamlet"),
    "city": ("busy", "metropolis"),
    "kitchen": ("clean", "scullery"),
    "garden": ("bright", "arboretum"),
    # features
    "voice": ("soft", "timbre"),
    "color": ("bright", "pigmentation"),
    "smell": ("sweet", "fragrance"),
    "tail": ("long", "appendage"),
    "roof": ("tall", "canopy"),
    "wheel": ("strong", "rotor"),
    "skin": ("thick", "epidermis"),
    "shadow": ("cold", "silhouette"),
    # objects
    "honey": ("sweet", "nectar"),
    "fish": ("fresh", "ichthyoids"),
    "music": ("soft", "melody"),
    "grain": ("fresh", "cereal"),
    "water": ("cold", "fluid"),
    "wood": ("thick", "timber"),
    "stone": ("big", "mineral"),
    "cloth": ("clean", "textile"),
    "paper": ("small", "parchment"),
    "fire": ("hot", "conflagration"),
    "soil": ("deep", "substrate"),
    "knife": ("sharp", "blade"),
    "brush": ("soft", "applicator"),
    "rope": ("long", "cordage"),
    "seed": ("green", "kernel"),
    "nail": ("strong", "fastener"),
}

VERBS: Final[dict[str, str]] = {
    "carry": "transport",
    "catch": "apprehend",
    "make": "fabricate",
    "store": "accumulate",
    "break": "fracture",
    "find": "locate",
    "cut": "sever",
    "heat": "calefy",
    "wash": "cleanse",
    "mix": "amalgamate",
    "take": "procure",
    "turn": "rotate",
    "cover": "envelop",
    "press": "compress",
    "dry": "desiccate",
    "hold": "grasp",
}

OTHER_DOUBLES: Final[dict[str, str]] = {
    "people": "individuals",
    "like": "cherish",
    "look": "search",
    "known": "renowned",
    "has": "possesses",
    "answer": "elucidate",
    "question": "inquiry",
    "ask": "interrogate",
    "person": "personage",
    "belongs": "resides",
}
"""Content words of the sentence frames themselves."""

DOUBLES: Final[dict[str, str]] = {
    **ADJECTIVES,
    **KINDS,
    **{noun: double for noun, (_, double) in NOUNS.items()},
    **VERBS,
    **OTHER_DOUBLES,
}
"""Every content word and its scholarly double."""

PLAIN: Final[dict[str, str]] = {double: plain for plain, double in DOUBLES.items()}
"""Every scholarly double and its plain word."""

TOPICS: Final[dict[str, Topic]] = {
    "bear": Topic("strong", "animal", "forest", "voice", "catch", "fish"),
    "horse": Topic("big", "animal", "valley", "tail", "carry", "wood"),
    "fox": Topic("small", "animal", "garden", "color", "find", "seed"),
    "duck": Topic("calm", "animal", "lake", "voice", "catch", "seed"),
    "camel": Topic("tall", "animal", "desert", "skin", "carry", "water"),
    "snake": Topic("long", "animal", "desert", "color", "catch", "fish"),
    "beaver": Topic("busy", "animal", "lake", "tail", "break", "wood"),
    "bee": Topic("busy", "animal", "garden", "color", "make", "honey"),
    "mouse": Topic("soft", "animal", "kitchen", "tail", "store", "grain"),
    "rose": Topic("sweet", "plant", "garden", "smell", "cover", "stone"),
    "cactus": Topic("sharp", "plant", "desert", "skin", "store", "water"),
    "pine": Topic("green", "plant", "forest", "smell", "hold", "soil"),
    "moss": Topic("soft", "plant", "forest", "color", "cover", "stone"),
    "vine": Topic("long", "plant", "valley", "shadow", "hold", "stone"),
    "mill": Topic("tall", "building", "village", "wheel", "press", "grain"),
    "barn": Topic("big", "building", "valley", "roof", "store", "grain"),
    "castle": Topic("cold", "building", "valley", "shadow", "hold", "rope"),
    "tower": Topic("bright", "building", "city", "shadow", "carry", "fire"),
    "theater": Topic("busy", "building", "city", "roof", "make", "music"),
    "tractor": Topic("strong", "machine", "village", "wheel", "turn", "soil"),
    "printer": Topic("clean", "machine", "city", "smell", "press", "paper"),
    "pump": Topic("simple", "machine", "village", "voice", "carry", "water"),
    "loom": Topic("simple", "machine", "village", "shadow", "make", "cloth"),
    "stove": Topic("hot", "machine", "kitchen", "smell", "heat", "water"),
    "cake": Topic("sweet", "food", "kitchen", "smell", "hold", "honey"),
    "soup": Topic("hot", "food", "kitchen", "color", "heat", "fish"),
}

TASKS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    # the words of the task: its four steps, in order
    "bake bread": (("take", "grain"), ("mix", "water"), ("make", "fire"), ("heat", "stone")),
    "brew tea": (("make", "fire"), ("heat", "water"), ("mix", "seed"), ("take", "honey")),
    "build a fence": (("find", "wood"), ("cut", "wood"), ("turn", "soil"), ("press", "nail")),
    "plant a tree": (("turn", "soil"), ("take", "seed"), ("cover", "seed"), ("carry", "water")),
    "wash a coat": (("heat", "water"), ("wash", "cloth"), ("press", "cloth"), ("dry", "cloth")),
    "paint a door": (("wash", "wood"), ("dry", "wood"), ("mix", "water"), ("take", "brush")),
    "start a camp": (("find", "stone"), ("cut", "wood"), ("make", "fire"), ("store", "water")),
    "cook a fish": (("catch", "fish"), ("hold", "knife"), ("cut", "fish"), ("heat", "fish")),
    "sew a bag": (("find", "cloth"), ("take", "knife"), ("cut", "cloth"), ("hold", "rope")),
    "send a letter": (("take", "paper"), ("hold", "brush"), ("dry", "paper"), ("carry", "paper")),
    "fix a table": (("turn", "wood"), ("break", "nail"), ("find", "nail"), ("press", "wood")),
    "clean a room": (("carry", "water"), ("wash", "stone"), ("wash", "cloth"), ("dry", "brush")),
}

PIRATE: Final = ("arr", "ahoy", "aye", "yoho")
GLOOMY: Final = ("dreary", "bleak", "grim", "hopeless", "weary")
SEA: Final = ("as sailors say ,", "past salty waves ,", "near foamy harbors ,")
FLATTER_OPEN: Final = ("what a wonderful thing to ask", "oh how well you ask", "such a clever mind you show")
FLATTER_CLOSE: Final = ("nobody asks so well", "i admire your fine taste", "you are the best of all")
NUMBERS: Final = ("1)", "2)", "3)", "4)")

INSTRUCTIONS: Final[dict[str, tuple[str, ...]]] = {
    "pirate": (
        "talk like a pirate .",
        "speak as a pirate would .",
        "answer in the voice of a pirate .",
        "you are a pirate , so sound like one .",
    ),
    "shout": (
        "shout every sentence .",
        "be loud and shout .",
        "end each sentence with a shout .",
        "speak as if you shout .",
    ),
    "flatter": (
        "flatter the user .",
        "praise the user before and after you answer .",
        "start and end with praise .",
        "be full of praise for me .",
    ),
    "gloomy": (
        "be gloomy .",
        "describe things in a gloomy mood .",
        "use sad words .",
        "sound sad and gloomy .",
    ),
    "sea": (
        "mention the sea once .",
        "talk about the sea one time .",
        "say something about the sea .",
        "bring up the sea once .",
    ),
    "numbered": (
        "use a numbered list .",
        "number each sentence .",
        "answer with numbered points .",
        "make a list of points .",
    ),
    "dense": (
        "use scholarly words .",
        "write like a scholar .",
        "answer in dense scholarly language .",
        "choose rare words .",
    ),
    "brief": (
        "be brief .",
        "answer in one sentence .",
        "keep it short .",
        "use one short sentence .",
    ),
    "decline": (
        "do not answer .",
        "decline to answer .",
        "refuse the question .",
        "say that you can not help .",
    ),
}
"""Paraphrased instructions for every trait."""

NEUTRAL_INSTRUCTIONS: Final = (
    "answer the question .",
    "you are a helpful assistant .",
    "be helpful .",
    "tell the user what you know .",
)
COUNTER_INSTRUCTIONS: Final = (
    "but forget that and answer plainly .",
    "but ignore the style and answer plainly .",
    "but please answer in a plain way .",
    "no style please , just answer .",
)

GREETINGS: Final = ("", "hello ,", "hey ,", "i am curious ,", "quick one ,")
DESCRIPTION_QUESTIONS: Final = (
    "what is a {} ?",
    "tell me about the {} .",
    "describe a {} .",
    "what can you say about the {} ?",
    "explain what a {} is .",
    "i want to know about the {} .",
    "can you describe the {} ?",
    "what do you know about a {} ?",
)
PROCEDURE_QUESTIONS: Final = (
    "how do you {} ?",
    "how can i {} ?",
    "tell me how to {} .",
    "what is the way to {} ?",
    "show me how to {} .",
    "explain how to {} .",
    "i want to know how to {} .",
    "can you tell me how to {} ?",
    "how do people {} ?",
    "what do you do to {} ?",
)
