"""What does training need fewer tokens with? One conversion healed by several objectives, in turns on the same batches.

Every objective has the whole schedule. The KL from the original on held-out text is measured as training goes and
tokens to a KL are read off the curves. Correctness gates: the original's KL from itself is 0, and all start from the
same KL.
"""

import sys
from pathlib import Path

from common import finish, parser
from heal_start import Student, tokens_to

import regear
from regear.cli.output import grid
from regear.measure.perplexity import score_pair
from regear.models.builtin import resolve
from regear.models.load import load_model, load_tokenizer
from regear.tasks.text import read_documents, spread, windows_of
from regear.train.recipes import StageRecipe
from regear.train.stream import Stream


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", default="smollm2-135m-instruct")
    options.add_argument("--work", type=Path, default=Path("heal-objectives"))
    options.add_argument("--ratio", default="1/3")
    options.add_argument("--hidden", default="0,0.4,1.6", help="weights of hidden states beside KL")
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--every", type=int, default=10)
    options.add_argument("--windows", type=int, default=6)
    options.add_argument("--lr", type=float, default=1e-3)
    arguments = options.parse_args()
    place = arguments.work / f"exact-{arguments.ratio.replace('/', '-')}"
    if not place.exists():
        regear.convert(
            arguments.model, place, f"convert.kv_ratio={arguments.ratio}", "evaluation.tokens=4096", to="mla"
        )
    teacher = load_model(resolve(arguments.model)).requires_grad_(False)
    tokenizer = load_tokenizer(resolve(arguments.model))
    windows = spread(windows_of(read_documents(["builtin"], "evaluation")), arguments.windows)
    if not abs(score_pair(teacher, teacher, tokenizer, windows)[0].mean_kl) < 1e-6:
        sys.exit("the original differs from itself")
    students = {}
    for weight in map(float, arguments.hidden.split(",")):
        recipe = StageRecipe.model_validate(
            {"tokens": 1, "lr": arguments.lr, "objective": {"kind": "distil", "ce": 0, "hidden": weight}}
        )
        students[weight] = Student(place, teacher, recipe)
    stream = Stream(["builtin"], tokenizer, sequence=recipe.sequence, batch=recipe.batch, seed=arguments.seed)
    for step in range(arguments.steps + 1):
        if step % arguments.every == 0 or step == arguments.steps:
            for student in students.values():
                kl = score_pair(student.model.eval(), teacher, tokenizer, windows)[0].mean_kl
                student.curve.append((step * recipe.batch * recipe.sequence, kl))
            print(f"step {step}", *(f"{s.curve[-1][1]:.4f}" for s in students.values()), file=sys.stderr, flush=True)
        if step < arguments.steps:
            batch = next(stream)
            for student in students.values():
                student.step(batch, step, arguments.steps)
    if len({student.curve[0] for student in students.values()}) > 1:
        sys.exit("the same model has several KLs from the original")

    plain = next(iter(students.values())).curve
    found = {
        str(weight): {"curve": student.curve, "tokens_to_the_first_ones_kl": tokens_to(student.curve, plain[-1][1])}
        for weight, student in students.items()
    }
    rows = [
        [name, *(f"{kl:.4f}" for _, kl in one["curve"]), f"{one['tokens_to_the_first_ones_kl'] or 0:,.0f}"]
        for name, one in found.items()
    ]
    table = grid(["hidden", *(f"{tokens:,}" for tokens, _ in plain), "tokens to the first's KL"], rows)
    finish("heal_objectives", arguments, found, table)


if __name__ == "__main__":
    main()
