"""Image bytes → pixels, against a plain reference in Pillow and numpy."""

import io

import numpy as np
import pytest
from onnx import TensorProto, helper, save
from PIL import Image
from zoo import bytes_column, save_ready, signature, spec, write_package

from examples import demo_models
from foretell.core.errors import InvalidInput, PackageError
from foretell.core.settings import ReplicaSettings
from foretell.runtimes import image as image_step
from foretell.runtimes import load

ONE_THREAD = ReplicaSettings(threads=1)
MEAN, STD = (123.0, 117.0, 104.0), (58.0, 57.0, 60.0)


def picture(width=90, height=60, mode="RGB"):
    """Smooth, with a different slope in each channel, so that a wrong crop or channel order shows."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    waves = [across * 200 + 20, down * 180 + 40, (np.sin(across * 6) * np.cos(down * 5) + 1) * 110]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8), "RGB").convert(mode)


def encode(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def echo_package(folder, size=(3, 16, 16), datatype=TensorProto.FLOAT, name="FP32", **step):
    """A model that answers with its pixels."""
    pixels = [helper.make_tensor_value_info(n, datatype, ["n", *size]) for n in ("pixels", "seen")]
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["seen"])], "echo", pixels[:1], pixels[1:])
    save(save_ready(graph), folder / "model.onnx")
    sig = signature([spec("image", "BYTES", -1)], [spec("seen", name, -1, *size)])
    step = {"kind": "image", "output": "pixels", "height": 16, "width": 16, **step}
    return write_package(folder, "onnx", "model.onnx", sig, transform={"before": [step]})


def see(package, *files):
    return load(package, ONE_THREAD).predict({"image": bytes_column(list(files))})["seen"]


def test_a_square_picture_is_resized_and_normalised_exactly_as_pillow_and_numpy_do(tmp_path):
    image = picture(48, 48)
    seen = see(echo_package(tmp_path, mean=list(MEAN), std=list(STD)), encode(image))
    resized = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), np.float64)
    expected = ((resized - MEAN) / STD).transpose(2, 0, 1)
    np.testing.assert_allclose(seen[0], expected, atol=1e-5)


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.5])
def test_a_wide_picture_is_cropped_to_its_centre(tmp_path, crop):
    image = picture(90, 60)
    seen = see(echo_package(tmp_path, crop=crop), encode(image))[0].transpose(1, 2, 0)
    kept = 60 * crop
    left, top = (90 - kept) / 2, (60 - kept) / 2
    # The reference crops whole pixels of a picture enlarged eight times, then shrinks it.
    large = image.resize((720, 480), Image.Resampling.BICUBIC)
    box = tuple(round(8 * edge) for edge in (left, top, left + kept, top + kept))
    expected = np.asarray(large.crop(box).resize((16, 16), Image.Resampling.BICUBIC), np.float64)
    assert np.abs(seen - expected).max() <= 4
    assert np.abs(seen - expected).mean() < 1


def test_rows_keep_their_order_and_formats_may_mix(tmp_path):
    image = picture(40, 40)
    formats = [encode(image), encode(image, "BMP"), encode(image, "WEBP", lossless=True), encode(image, "TIFF")]
    other = encode(image.rotate(180))
    seen = see(echo_package(tmp_path), *formats[:2], other, *formats[2:])
    for row in (1, 3, 4):
        np.testing.assert_array_equal(seen[row], seen[0])
    assert np.abs(seen[2] - seen[0]).max() > 50


def test_nhwc_keeps_the_channels_last(tmp_path):
    file = encode(picture(40, 40))
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = see(echo_package(tmp_path / "a"), file)
    last = see(echo_package(tmp_path / "b", size=(16, 16, 3), layout="nhwc"), file)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)


def test_a_model_of_bytes_gets_bytes(tmp_path):
    seen = see(echo_package(tmp_path, datatype=TensorProto.UINT8, name="UINT8"), encode(picture(16, 16)))
    np.testing.assert_array_equal(seen[0].transpose(1, 2, 0), np.asarray(picture(16, 16)))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path, mode):
    image = picture(16, 16, mode)
    seen = see(echo_package(tmp_path), encode(image, "TIFF"))
    np.testing.assert_array_equal(seen[0].transpose(1, 2, 0), np.asarray(image.convert("RGB")))


def test_a_camera_s_orientation_is_obeyed(tmp_path):
    image, exif = picture(16, 16), Image.Exif()
    exif[0x0112] = 3  # upside down
    seen = see(echo_package(tmp_path), encode(image.rotate(180), exif=exif))
    np.testing.assert_array_equal(seen[0].transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize("broken", [b"", b"not an image", encode(picture())[:200], b"\x89PNG\r\n\x1a\n" + b"\0" * 64])
def test_a_broken_image_is_named_by_its_row(tmp_path, broken):
    with pytest.raises(InvalidInput, match='input "image", row 1: not an image that can be read'):
        see(echo_package(tmp_path), encode(picture()), broken)


def test_an_image_that_claims_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(image_step, "MAX_PIXELS", 1000)
    with pytest.raises(InvalidInput, match=r"90 × 60 pixels, the limit is 1,000"):
        see(echo_package(tmp_path), encode(picture()))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"output": "pixel"}, 'the image step makes "pixel"; the model takes pixels FP32'),
        ({"height": 8}, r"makes \[-1, 3, 8, 16\] \(nchw\), the model takes"),
        ({"layout": "nhwc"}, r"makes \[-1, 16, 16, 3\] \(nhwc\)"),
        ({"crop": 0.0}, "crop 0.0"),
        ({"std": [1.0, 0.0, 1.0]}, "std of 0"),
    ],
)
def test_a_step_that_does_not_fit_the_model_is_a_package_error(tmp_path, step, message):
    with pytest.raises(PackageError, match=message):
        load(echo_package(tmp_path, **step), ONE_THREAD)


def test_lite0_answers_an_image_like_numpy_over_its_logits(tmp_path):
    try:
        folder = demo_models.lite0(tmp_path)
    except demo_models.ModelMissing as error:
        pytest.skip(str(error))
    transform = {
        "before": [
            {
                "kind": "image",
                "output": "image",
                "height": 224,
                "width": 224,
                "crop": 0.875,
                "mean": [127.0] * 3,
                "std": [128.0] * 3,
            }
        ],
        "after": [{"kind": "labels", "input": "logits", "top": 3}],
    }
    sig = signature(
        [spec("image", "BYTES", -1)],
        [spec("label", "BYTES", -1, 3), spec("probability", "FP32", -1, 3), spec("logits", "FP32", -1, 1000)],
    )
    package = write_package(folder, "onnx", "model.onnx", sig, transform=transform)
    outputs = load(package, ONE_THREAD).predict({"image": bytes_column([encode(picture(300, 260))])})
    logits = outputs["logits"][0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    best = np.argsort(-shares)[:3]
    np.testing.assert_allclose(outputs["probability"][0], shares[best], rtol=1e-4)
    assert outputs["label"].shape == (1, 3)
