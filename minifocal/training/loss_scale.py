"""Loss scaling: what keeps small gradients of float16 from becoming zero."""

from minifocal.arrays import Array, beside, full, get_array_module
from minifocal.errors import InputError
from minifocal.layers.base import Layer

START = 2.0**15
GROW_AFTER = 2000  # good steps in a row
LEAST, LARGEST = 2.0**-24, 2.0**24


class LossScaler:
    """A factor of the loss, as large as the gradients allow.

    The smallest float16 is 2^-24, and gradients are often smaller. So the loss is multiplied by a scale before the way
    back, and the gradients are divided by it behind. When one of them is not finite the step is skipped and the scale
    halved; after GROW_AFTER good steps in a row it is doubled. A power of two changes no bit of what neither over- nor
    underflows.

    Its state is two scalar arrays beside the parameters, so that no decision waits for a device.

    Args:
        model: to train, on its device.
    Attributes:
        scale: float32. good_steps: int32, since the scale was changed last.
    Source: Micikevicius et al. 2018 (arXiv:1710.03740).
    """

    def __init__(self, model: Layer) -> None:
        self.ops = model.ops
        weight = next(model.parameters()).data
        self.scale = beside(full((), START, "float32"), weight)
        self.good_steps = beside(full((), 0, "int32"), weight)

    def unscale(self, model: Layer) -> Array:
        """Divide all gradients by the scale, in place, and choose the scale of the next step.

        Returns:
            whether to skip the step, since a gradient is not finite: a boolean scalar array.
        """
        xp = get_array_module(self.scale)
        overflow = self.ops.unscale([parameter.grad for parameter in model.parameters()], self.scale)
        good = xp.where(overflow, 0, self.good_steps + 1)
        grown = xp.where(good < GROW_AFTER, self.scale, 2.0 * self.scale)
        self.scale[...] = xp.clip(xp.where(overflow, 0.5 * self.scale, grown), LEAST, LARGEST)
        self.good_steps[...] = xp.where(good < GROW_AFTER, good, 0)
        return overflow

    def state_dict(self) -> dict[str, Array]:
        """Give what is kept between steps, by name: the arrays themselves, not copies."""
        return {"scale": self.scale, "good_steps": self.good_steps}

    def check_state_dict(self, state: dict[str, Array]) -> None:
        """Refuse what is not the state of a scaler.

        Raises:
            InputError: other names or dtypes, no scalars, or a scale that no training comes to.
        """
        kinds, theirs = (
            {name: (a.shape, str(a.dtype)) for name, a in arrays.items()} for arrays in (self.state_dict(), state)
        )
        if kinds != theirs or not LEAST <= float(state["scale"]) <= LARGEST or int(state["good_steps"]) < 0:
            raise InputError(f"this is not the state of a {type(self).__name__}; train anew")

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Copy in what `state_dict` gave. Raises as check_state_dict."""
        self.check_state_dict(state)
        for name, array in self.state_dict().items():
            array[...] = beside(state[name], array)
