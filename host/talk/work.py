"""Work of the kinds that guesses are measured with: prompts, and answers as a model would give them.

Stories are new from word to word; a summary, an edit and a list take much of their answer from the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """What is asked, and what is answered. `copies`: much of the answer is in the prompt."""

    name: str
    prompt: str
    answer: str
    copies: bool = True


_STORY = """Once upon a time there was a little fox who lived at the edge of a forest. Every morning the fox went to the river to drink. One day the
river was dry. The fox was thirsty and sad, so she walked up the hill to look for water. On the way she met an old turtle. "Where has the river
gone?" asked the fox. "A big tree fell in the storm," said the turtle. "It lies across the stream near the top of the hill and holds the water
back." The fox ran to the top and saw the tree. It was too heavy for her. She called the bear, the badger and the two beavers who lived behind the
hill. The bear pushed, the badger dug, and the beavers cut the branches with their teeth. At last the tree rolled aside and the water came down
with a roar. That evening all the animals drank from the river, and the fox thanked every one of them."""

_LETTER = """Dear Ms. Keller, thank you for your letter of the third of May about the delivery of the garden chairs. We are sorry that two of the six chairs arrived
with broken legs. Our driver has told us that the boxes were not marked as fragile. We will send you two new chairs on Monday, and our driver will take the
broken ones with him. You do not have to pay for the delivery. If you have any questions, please call our office in Bern between nine and five. Yours
sincerely, Tom Baker"""

_ITEMS = """The shop in the old mill sells bread, butter, brown eggs, goat cheese, plum jam, honey from the valley, dried apples, hazelnuts, smoked trout, potatoes,
carrots, red onions, white beans and flour from its own mill."""

WORK = (
    Work(
        "story",
        "Tell me a story about a mouse and the moon.",
        """A grey mouse sat on a roof and looked at the sky. The moon was round and yellow like a wheel of cheese. "I want a piece of it," said the mouse. He
climbed the tallest chimney in the village, but the moon was still far away. An owl flew by and laughed. "Nobody can eat the moon," she said, "but I
know where it comes down every night." She showed him a pond behind the church. There was the moon, floating on the dark water. The mouse
reached out with one paw, and the light broke into a hundred small pieces. He sat there until morning, happy, and never felt hungry for the
moon again.""",
        copies=False,
    ),
    Work(
        "another story",
        "Tell me about a girl who finds a key.",
        """Lena found the key under a loose board in her grandmother's kitchen. It was small and rusty and had a green ribbon. She tried it on the cellar door, on
the garden gate and on the piano. Nothing opened. Her brother said it was only junk. But in October, when they painted the attic, a narrow
cupboard appeared behind the wallpaper. The lock clicked at once. Inside lay a violin without strings, four letters and a photograph of a man
whom none of them knew. Grandmother put on her glasses, looked for a long time and smiled. "So that is where he hid it," she said.""",
        copies=False,
    ),
    Work(
        "summary",
        "Pick the sentences that tell what happens. " + _STORY,
        """One day the river was dry. The fox was thirsty and sad, so she walked up the hill to look for water. "A big tree fell in the storm," said the
turtle. The bear pushed, the badger dug, and the beavers cut the branches with their teeth. At last the tree rolled aside and the water came down
with a roar.""",
    ),
    Work(
        "edit",
        "Write this letter to Mr. Huber, with three of the eight chairs. " + _LETTER,
        _LETTER.replace("Ms. Keller", "Mr. Huber").replace("two of the six", "three of the eight").replace("two new", "three new"),
    ),
    Work(
        "list",
        "Make a list of what the shop sells. " + _ITEMS,
        """- bread
- butter
- brown eggs
- goat cheese
- plum jam
- honey from the valley
- dried apples
- hazelnuts
- smoked trout
- potatoes
- carrots
- red onions
- white beans
- flour from its own mill""",
    ),
)  # fmt: skip


def find(name: str) -> Work:
    """Work by its name; KeyError if there is none."""
    return {w.name: w for w in WORK}[name]
