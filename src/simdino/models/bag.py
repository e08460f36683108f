"""A bag of channels: every channel of an image goes alone through one encoder of one channel, and what it gives is
joined. The weights do not depend on the number of channels, so that sets whose channels change share them, as with
multiplexed stains; it costs as many passes as there are channels (Bourriez et al. 2024, arXiv 2311.15264, compare it
with other ways)."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from simdino.config import EncoderConfig
from simdino.contracts import Preprocess, Tokens
from simdino.models.encoder import Encoder, EncoderKind

BAG = "bag:"  # before the name of an encoder


class BagOfChannels(Encoder):
    """Images [N, C, H, W] -> Tokens as wide as C times those of `encoder`, which takes images of one channel."""

    def __init__(self, encoder: Encoder, *, channels: int) -> None:
        super().__init__()
        self.encoder, self.in_chans = encoder, channels
        self.embed_dim = channels * encoder.embed_dim
        self.patch_size, self.depth = encoder.patch_size, encoder.depth
        self.has_class_token = encoder.has_class_token

    @property
    def rates(self) -> Sequence[float] | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How likely the encoder drops each block's branches."""
        return self.encoder.rates

    @rates.setter
    def rates(self, rates: Sequence[float] | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.encoder.rates = rates

    @property
    def mask_token_name(self) -> str:
        """The name of the encoder's mask token."""
        return f"encoder.{self.encoder.mask_token_name}"

    def forward(
        self, images: Tensor, *, keys: Tensor | None = None, masks: Tensor | None = None, patches: bool = True
    ) -> Tokens:
        """Encode images as `Encoder.forward` does. All channels of an image have its key and its masks."""
        tokens = self.encoder(
            self._apart(images), patches=patches,
            keys=None if keys is None else keys.repeat_interleave(self.in_chans),
            masks=None if masks is None else masks.repeat_interleave(self.in_chans, 0),
        )  # fmt: skip
        return self._joined(tokens)

    def _apart(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N C, 1, H, W]. Raises ValueError for other images."""
        if images.shape[1] != self.in_chans:
            raise ValueError(f"images have {images.shape[1]} channels, expected {self.in_chans}")
        return images.flatten(0, 1)[:, None]

    def _joined(self, tokens: Tokens) -> Tokens:
        """Tokens of N C images of one channel -> those of N images, channel after channel along the width."""

        def join(one: Tensor | None) -> Tensor | None:
            return None if one is None else one.unflatten(0, (-1, self.in_chans)).movedim(1, -2).flatten(-2)

        cls = join(tokens.cls)
        assert cls is not None
        return Tokens(cls=cls, patches=join(tokens.patches), registers=join(tokens.registers), grid=tokens.grid)

    def stages(self) -> list[nn.Module]:
        """Return the encoder's blocks."""
        return self.encoder.stages()

    def layer_of(self, name: str) -> int:
        """Return the layer as the encoder counts."""
        return self.encoder.layer_of(name.removeprefix("encoder."))

    def last_blocks(self, images: Tensor, count: int) -> list[Tokens]:
        """Return the joined tokens after each of the encoder's last blocks."""
        return [self._joined(tokens) for tokens in self.encoder.last_blocks(self._apart(images), count)]


def bag_of(encoder: Encoder, preprocess: Preprocess) -> BagOfChannels:
    """Return the bag that brings an encoder of one channel, or a bag of that, to images of more. preprocess: of
    these."""
    if isinstance(encoder, BagOfChannels):
        encoder = encoder.encoder
    bag = BagOfChannels(encoder, channels=preprocess.channels)
    bag.config, bag.preprocess = replace(encoder.config, name=BAG + encoder.config.name), preprocess
    return bag


def bag_kind(kind: EncoderKind) -> EncoderKind:
    """Return what is known of bags of an encoder of a kind. Their width depends on the images."""

    def make(config: EncoderConfig, in_chans: int) -> Encoder:
        plain = kind.complete(replace(config, name=config.name.removeprefix(BAG)))
        encoder = kind.make(plain, 1)
        encoder.config = plain
        return BagOfChannels(encoder, channels=in_chans)

    return replace(kind, make=make, compiles=False, projects=False, joins=True)
