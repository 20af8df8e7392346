"""What the sets ask about the photographs, one tuple a question."""

# photograph, its caption, its mirror image's, tag, secondary tag, predicates, collapsed tag
MIRRORED = [
    ("000000000139", "the flag is left of the shuttle", "the shuttle is left of the flag",
     "Noun", "", 1, "Object"),
    ("000000004795", "the handle is left of the spoon", "the spoon is left of the handle",
     "Noun", "", 1, "Object"),
    ("000000017178", "the man stands left of the tripod", "the tripod stands left of the man",
     "Noun", "", 1, "Object"),
    ("000000030213", "the flag hangs and the officer stands right of it",
     "the officer stands and the flag hangs right of it", "Noun, Verb-Intransitive", "", 2, "Both"),
]  # fmt: skip
# upper and lower photograph, caption of this order, of the other, then as above
GRIDS = [
    ("000000007281", "000000011760", "a cat above a rocket", "a rocket above a cat",
     "Noun", "", 1, "Object"),
    ("000000003845", "000000017178", "a cup of coffee above a photographer",
     "a photographer above a cup of coffee", "Noun Phrase", "", 1, "Object"),
    ("000000026690", "000000024919", "stars over stones", "stones over stars",
     "Noun", "", 1, "Object"),
    ("000000001584", "000000008532", "a face on top of two eyes", "two eyes on top of a face",
     "Noun Phrase, Determiner-Numeral", "", 1, "Object"),
    ("000000030213", "000000003845", "an officer is shown above some coffee",
     "some coffee is shown above an officer", "Noun", "Series", 1, "Object"),
    ("000000007281", "000000022935", "the cat is above and the grass is below",
     "the cat is below and the grass is above", "Preposition", "", 2, "Relation"),
    ("000000013659", "000000021167", "the rocket is at the top and the bricks at the bottom",
     "the rocket is at the bottom and the bricks at the top", "Preposition Phrase", "", 2,
     "Relation"),
    ("000000017178", "000000031269", "a man comes before a woman", "a man comes after a woman",
     "Preposition", "", 1, "Relation"),
    ("000000003845", "000000006471", "the saucer is over the wooden board",
     "the saucer is under the wooden board", "Preposition", "", 1, "Relation"),
    ("000000002006", "000000007281", "there is a shuttle over the animal",
     "there is a shuttle under the animal", "Preposition", "Symbolic", 1, "Relation"),
    ("000000009769", "000000004795", "whiskers first and a mug second",
     "whiskers second and a mug first", "Adjective-Manner Phrase", "Series", 2, "Both"),
    ("000000026690", "000000000139", "above are galaxies, below smiles an astronaut",
     "below are galaxies, above smiles an astronaut", "Preposition, Scope", "", 2, "Both"),
]  # fmt: skip

# photograph, box (x, y, w, h), its two things, and the relation of the first to the second
RELATIONS = [
    ("000000000139", (90, 0, 390, 400), ("woman", "shuttle"), "to the left of"),
    ("000000000139", (120, 240, 360, 240), ("helmet", "suit"), "in front of"),
    ("000000003845", (60, 0, 420, 320), ("cup", "saucer"), "on"),
    ("000000003845", (0, 0, 480, 320), ("saucer", "table"), "on top of"),
    ("000000004795", (20, 160, 250, 130), ("spoon", "handle"), "to the right of"),
    ("000000011760", (100, 60, 420, 360), ("rocket", "towers"), "between"),
    ("000000017178", (0, 20, 300, 380), ("man", "camera"), "behind"),
    ("000000017178", (140, 60, 260, 340), ("tripod", "grass"), "on"),
    ("000000031269", (20, 0, 200, 220), ("cap", "woman"), "above"),
    ("000000007281", (40, 10, 400, 280), ("eyes", "nose"), "above"),
]
# ... or the two attributes that change places
ATTRIBUTIONS = [
    ("000000000139", (0, 100, 480, 380), ("suit", "helmet"), ("orange", "white")),
    ("000000003845", (60, 0, 420, 320), ("saucer", "spoon"), ("red", "silver")),
    ("000000003845", (0, 0, 480, 320), ("table", "cup"), ("wooden", "small")),
    ("000000007281", (20, 0, 420, 293), ("eyes", "nose"), ("green", "pink")),
    ("000000011760", (0, 0, 640, 427), ("rocket", "sky"), ("tall", "blue")),
    ("000000017178", (0, 20, 400, 380), ("coat", "sky"), ("black", "bright")),
    ("000000002006", (20, 0, 110, 260), ("tank", "shuttle"), ("brown", "white")),
    ("000000031269", (0, 0, 227, 300), ("woman", "cap"), ("old", "golden")),
]

# subset: photograph, caption, negative caption
SUGARCREPE = {
    "add_att": [
        ("000000391895", "A helmet with a black visor.", "A cracked helmet with a black visor."),
        ("000000403013", "A spoon rests on a saucer.", "A wooden spoon rests on a saucer."),
        ("000000429281", "A cat looks to the right.", "A sleeping cat looks to the right."),
    ],
    "add_obj": [
        ("000000397133", "A patch on an orange suit.", "A patch and a watch on an orange suit."),
        ("000000449661", "A camera stands on a tripod.", "A camera and a lamp stand on a tripod."),
        (
            "000000480985",
            "A cap with a golden emblem.",
            "A cap and a feather with a golden emblem.",
        ),
    ],
    "replace_att": [
        ("000000403013", "A silver spoon on a plate.", "A plastic spoon on a plate."),
        ("000000418281", "The pink nose of a cat.", "The black nose of a cat."),
        ("000000438862", "Bright lights at night.", "Broken lights at night."),
    ],
    "replace_obj": [
        ("000000449661", "A man's face behind a camera.", "A man's face behind a telescope."),
        ("000000462565", "An orange galaxy in a dark sky.", "An orange balloon in a dark sky."),
        ("000000475779", "Ribbons on a navy jacket.", "Flowers on a navy jacket."),
    ],
    "replace_rel": [
        ("000000391895", "A helmet in front of a suit.", "A helmet on top of a suit."),
        ("000000403013", "A spoon lies beside a cup.", "A spoon stands in a cup."),
        ("000000449661", "A man is filming with a camera.", "A man is carrying a camera."),
    ],
    "swap_att": [
        ("000000397133", "A purple patch on an orange suit.", "An orange patch on a purple suit."),
        ("000000403013", "A red plate on a brown table.", "A brown plate on a red table."),
        ("000000480985", "A black cap with gold leaves.", "A gold cap with black leaves."),
    ],
    "swap_obj": [
        ("000000403013", "A spoon rests on a saucer.", "A saucer rests on a spoon."),
        ("000000438862", "Lamps on both sides of a rocket.", "Rockets on both sides of a lamp."),
        ("000000449661", "A camera on top of a tripod.", "A tripod on top of a camera."),
    ],
}

CLASSES = {
    "astronaut": ("000000391895.jpg", "000000397133.jpg", "astronaut-smile.png",
                  "astronaut-suit.webp"),
    "cat": ("000000418281.jpg", "000000429281.jpg", "cat-forehead.png", "cat-mirrored.webp"),
    "coffee_cup": ("000000403013.jpg", "coffee-gray.png", "coffee-rim.webp"),
    "rocket": ("000000438862.jpg", "rocket-mirrored.webp", "rocket-nose.png"),
}  # fmt: skip

# nouns and adjectives of the validation captions
LEXICON = (
    ("helmet", "visor", "astronaut", "lights", "spots", "light", "suit", "glass", "patch", "badge",
     "shuttle", "jacket", "fabric", "strap", "emblem", "names", "edge", "chest", "spoon", "saucer",
     "cup", "table", "plate", "bowl", "teaspoon", "part", "nose", "cat", "picture", "mouth",
     "muzzle", "fur", "snout", "kitten", "cheeks", "whiskers", "photo", "face", "eyes", "blanket",
     "stripes", "head", "foot", "rocket", "floodlights", "stars", "night", "base", "pad", "lamps",
     "strip", "sky", "sides", "camera", "tripod", "field", "legs", "grass", "man", "stand", "lawn",
     "galaxy", "middle", "galaxies", "shapes", "colors", "space", "look", "dots", "telescope",
     "ribbons", "medals", "uniform", "decorations", "officer", "coat", "ribbon", "bar", "shoulder",
     "cap", "hat", "leaves", "brim", "eagle", "shield", "curtain", "top", "woman"),
    ("white", "shiny", "black", "round", "two", "orange", "dark", "purple", "blue", "silver", "red",
     "brown", "metal", "wooden", "pink", "tiny", "small", "grey", "tabby", "striped", "big", "wide",
     "bright", "four", "three", "different", "colorful", "navy", "yellow", "golden", "gold"),
)  # fmt: skip
