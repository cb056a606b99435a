"""The exercises: their numbers, what is asked, and the files that come with them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files

from minifocal.errors import InputError, shown
from minifocal.learn import cases_basics, cases_debugging, cases_modulation, cases_spatial
from minifocal.learn.case import Case

HINTS = 3


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        number: two digits.
        function: what the learner writes; also the name of the file.
        title: one line.
        tutorial: the number of the tutorial that leads to it.
        cases: makes the calls that it is judged by.
    """

    number: str
    function: str
    title: str
    tutorial: int
    cases: Callable[[], Iterator[Case]]

    @property
    def file_name(self) -> str:
        """The name of the learner's file."""
        return f"{self.number}_{self.function}.py"

    @property
    def stub(self) -> str:
        """What is handed out."""
        return self._read("stub.py")

    @property
    def solution(self) -> str:
        """An answer that passes, with its explanation."""
        return self._read("solution.py")

    @property
    def hints(self) -> tuple[str, ...]:
        """HINTS hints, each saying more than the one before."""
        return tuple(hint.strip() for hint in self._read("hints.txt").split("\n---\n"))

    def make_cases(self) -> tuple[Case, ...]:
        """Make the calls that an answer is judged by, the simplest first."""
        return tuple(self.cases())

    def _read(self, name: str) -> str:
        folder = files("minifocal.learn") / "exercises" / f"{self.number}_{self.function}"
        return (folder / name).read_text(encoding="utf-8")


EXERCISES = tuple(
    Exercise(f"{number:02}", function, title, tutorial, cases)
    for number, (function, title, tutorial, cases) in enumerate(
        (
            ("linear_backward", "a linear layer's three gradients", 1, cases_basics.linear),
            ("sum_broadcast_axes", "the sum over a broadcast axis", 1, cases_basics.broadcast),
            ("gelu_backward", "the slope of GELU", 3, cases_basics.gelu),
            ("gelu_tanh_backward", "the slope of GELU by tanh", 3, cases_basics.gelu_tanh),
            ("cross_entropy_backward", "softmax and cross-entropy", 3, cases_basics.cross_entropy),
            ("layer_norm_backward", "LayerNorm's two hidden terms", 4, cases_basics.layer_norm),
            ("cut_patches", "an image cut into patches", 5, cases_spatial.cut_patches),
            ("patches_backward", "patches put back", 5, cases_spatial.patches_backward),
            ("depthwise_conv", "a depthwise convolution", 6, cases_spatial.depthwise_conv),
            ("depthwise_conv_dx", "the convolution's gradient for the map", 6, cases_spatial.depthwise_conv_dx),
            (
                "depthwise_conv_dweight",
                "the convolution's gradient for the kernel",
                6,
                cases_spatial.depthwise_conv_dweight,
            ),
            ("gates_backward", "gates that choose among levels", 7, cases_modulation.gates),
            ("global_level_backward", "the share of the global level", 7, cases_modulation.global_level),
            ("modulation_backward", "the product of query and modulator", 8, cases_modulation.modulation),
            ("drop_path_backward", "drop path", 8, cases_modulation.drop_path),
            ("layer_scale_backward", "layer scale", 8, cases_modulation.layer_scale),
            ("sgd_step", "a step of SGD with momentum", 9, cases_modulation.sgd),
            ("focal_level_backward", "a whole focal level", 7, cases_modulation.focal_level),
            ("debug_mlp_branch", "find the bug: an MLP on a residual branch", 8, cases_debugging.mlp_branch),
            ("debug_gated_conv", "find the bug: a gated depthwise convolution", 7, cases_debugging.gated_conv),
            ("debug_post_ln_block", "find the bug: modulation with LayerNorm after it", 8, cases_debugging.post_ln),
        ),
        start=1,
    )
)


def find_exercise(name: str) -> Exercise:
    """Find an exercise by its number, 6 or 06, or by its name.

    Raises:
        InputError: there is none.
    """
    for exercise in EXERCISES:
        if name in (exercise.number, exercise.number.lstrip("0"), exercise.function, exercise.file_name):
            return exercise
    first, last = EXERCISES[0].number, EXERCISES[-1].number
    raise InputError(
        f"there is no exercise {shown(name)}: give a number from {first} to {last}; see minifocal learn list"
    )
