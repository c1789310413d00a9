"""Prompts of the engine's benchmarks, cut from texts that are read where they lie."""

from typing import Any

from regear.engine.text import encode_prompt
from regear.tasks.text import read_documents

SUBJECTS = ("a rainbow", "a mortgage", "photosynthesis", "the tides", "a prime number", "a compiler", "yeast in bread",
            "an earthquake", "a chess opening", "supply and demand", "a sonnet", "the water cycle", "a bicycle gear",
            "an encyclopaedia", "the French Revolution", "a telescope")  # fmt: skip

PROBLEMS = (
    "Tom has 12 apples and gives 5 to Ann. How many has he left?",
    "A train runs 60 miles an hour for 3 hours. How far does it go?",
    "A book costs 8 dollars. What do 7 of them cost?",
    "There are 24 cookies for 6 children. How many does each get?",
    "A rectangle is 9 cm long and 4 cm wide. What is its area?",
    "Mary read 15 pages on Monday and 28 on Tuesday. How many in all?",
    "A shop sells 35 pens a day. How many in 5 days?",
    "Sam is 14 and his brother is half as old. How old is the brother?",
    "What is 20 percent of 150?",
    "A bus holds 40 people and 17 get off. How many stay?",
    "Five friends share 45 dollars. How much has each?",
    "A garden has 6 rows of 11 plants. How many plants are there?",
    "Lena had 50 marbles, lost 13 and found 4. How many has she?",
    "A coat of 80 dollars is sold at a quarter less. What does it cost?",
    "A tank holds 90 litres and fills at 15 litres a minute. How long does it take?",
    "What is the mean of 4, 8 and 12?",
)


def cut_prompts(tokenizer: Any, text: str, count: int, length: int, kind: str | None = None) -> list[list[int]]:
    """`count` stretches of `length` tokens, spread over the documents of one kind, or of all if there is none."""
    documents = read_documents([text], "training")
    chosen = [document.text for document in documents if document.kind == kind]
    raw, size = "\n\n".join(chosen or [document.text for document in documents]), 8 * length + 64
    wrapped, stride = raw * (1 + -(-size // len(raw))), len(raw) // count
    return [list(tokenizer(wrapped[i * stride :][:size])["input_ids"][:length]) for i in range(count)]


def repeating(tokenizer: Any, text: str, count: int, length: int) -> list[list[int]]:
    """Prompts that ask for what stands in them: a piece of code with one name changed, or a page again, in turn."""
    found = []
    for i, ids in enumerate(cut_prompts(tokenizer, text, count, length, "code")):
        page = tokenizer.decode(ids)
        names = [word for word in page.replace("(", " ").split() if word.isidentifier() and len(word) > 3]
        name = max(sorted(set(names)), key=names.count, default="name")
        again = page.replace(name, f"{name}_2") if i % 2 == 0 else page
        title = f"with {name} renamed to {name}_2" if i % 2 == 0 else "once more"
        found.append(list(tokenizer(f"{page}\n\n# The same {title}:\n{again[: len(again) // 4]}")["input_ids"]))
    return found


def asked(tokenizer: Any, text: str, count: int, length: int) -> list[list[int]]:
    """Half are texts to go on from, of different lengths; half are the same as a user's turn of a conversation."""
    plain = [ids[: length - i % (length // 2)] for i, ids in enumerate(cut_prompts(tokenizer, text, count, length))]
    turns = [encode_prompt(tokenizer, tokenizer.decode(ids), raw=False) for ids in plain[1::2]]
    return plain[::2] + turns


def questions(tokenizer: Any, count: int) -> list[list[int]]:
    """A user's questions, of different lengths."""
    forms = ("What is {}?", "Explain {} to a child of ten, with an example.", "Write a short paragraph about {}.")
    return [
        encode_prompt(tokenizer, forms[i % len(forms)].format(subject), raw=False)
        for i, subject in enumerate((SUBJECTS * (1 + count // len(SUBJECTS)))[:count])
    ]


def renamings(tokenizer: Any, count: int, text: str = "builtin") -> list[list[int]]:
    """A user's requests to write a piece of code again with one name changed."""
    found = []
    for ids in cut_prompts(tokenizer, text, count, 160, "code"):
        page = tokenizer.decode(ids)
        names = [word for word in page.replace("(", " ").split() if word.isidentifier() and len(word) > 3]
        name = max(sorted(set(names)), key=names.count, default="name")
        wish = f"Rewrite this code with `{name}` renamed to `{name}_2`. Change nothing else.\n```python\n{page}\n```"
        found.append(encode_prompt(tokenizer, wish, raw=False))
    return found


def problems(tokenizer: Any, count: int) -> list[list[int]]:
    """Sums in words, to be solved step by step."""
    chosen = (PROBLEMS * (1 + count // len(PROBLEMS)))[:count]
    return [encode_prompt(tokenizer, f"{problem} Think step by step.", raw=False) for problem in chosen]
