"""Foundation X's DINO: parts that tasks share, and what student and teacher are compared on."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file

from ark.network import Network
from ark.optim import check_covered, parameter_groups
from ark.teacher import Teacher
from ark.types import ConfigError, DetectionTarget, TaskSpec

SIZE = 96
BACKBONE = {"name": "test_convnext", "image_size": SIZE, "args": {}}
SMALL = {
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn": 32,
    "queries": 12,
    "denoising": 6,
}
DETR = {key: value for key, value in SMALL.items() if key != "denoising"}
DENSE = {"channels": 16, "convs": 1}
CLASSES = {"one": ("nodule",), "two": ("effusion", "mass", "rib")}
IMAGES = torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).to(
    torch.uint8
)
BOXES = [torch.tensor([[10.0, 12, 40, 60]]), torch.zeros(0, 4)]
TARGET = DetectionTarget(BOXES, [torch.tensor([0]), torch.zeros(0, dtype=torch.int64)])


def network(detector: str, args: dict, shared: str | None, two: dict | None = None) -> Network:
    torch.manual_seed(0)
    init_args = {"detector": detector, "detector_args": args, "shared": shared}
    tasks = [
        TaskSpec(
            name,
            "boxes",
            "detection",
            classes,
            {
                "class_path": "heads.detection.DetectionHead",
                "init_args": {**init_args, **((two or {}) if name == "two" else {})},
            },
        )
        for name, classes in CLASSES.items()
    ]
    return Network(BACKBONE, None, tasks)


def losses(net: Network, task: str, seed: int = 7) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    _, output = net.run(task, IMAGES, TARGET)
    return net.head(task).loss(output, TARGET)


CASES = {
    "dino encoder": ("dino", SMALL, "encoder", ["detector_encoder"]),
    "dino decoder": ("dino", SMALL, "decoder", ["detector_encoder", "detector_decoder"]),
    "dino neck": ("dino", SMALL, "neck", ["detector_neck"]),
    "detr decoder": ("deformable_detr", DETR, "decoder", ["detector_encoder", "detector_decoder"]),
    "plain detr decoder": (
        "deformable_detr",
        {**DETR, "refine": False, "two_stage": False},
        "decoder",
        ["detector_encoder", "detector_decoder"],
    ),
    "fcos neck": ("fcos", DENSE, "neck", ["detector_neck"]),
    "fcos encoder": ("fcos", DENSE, "encoder", ["detector_neck"]),
    "faster_rcnn neck": (
        "faster_rcnn",
        {"channels": 16, "fc_channels": 16, "proposals": 10, "samples": 8},
        "neck",
        ["detector_neck"],
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def own_names(net: Network, task: str) -> set[str]:
    return {name.split(".")[0] + "." + name.split(".")[1] for name in net.head(task).state_dict()}


def test_shared_parts_are_the_networks_and_only_once(case, tmp_path):
    detector, args, shared, parts = case
    net = network(detector, args, shared)
    assert list(net.shared) == parts
    state = net.state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)
    save_file(state, tmp_path / "net.safetensors")
    other = network(detector, args, shared)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    for task in net.tasks:
        torch.testing.assert_close(losses(other.eval(), task), losses(net.eval(), task))
    shared_weights = {id(p) for p in net.shared.parameters()}
    assert not shared_weights & {id(p) for p in net.heads.parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(net, 1e-3, {"shared": 0.1}, 1e-4))
    check_covered(net, optimizer)


def test_both_tasks_teach_the_shared_parts_and_only_their_own_head(case):
    net = network(*case[:3])
    for task, other in (("one/boxes", "two/boxes"), ("two/boxes", "one/boxes")):
        net.zero_grad()
        sum(losses(net, task).values()).backward()
        idle = [name for name, p in net.shared.named_parameters() if p.grad is None]
        assert not idle
        assert not [name for name, p in net.head(task).named_parameters() if p.grad is None]
        assert all(p.grad is None for p in net.head(other).parameters())


def test_the_teacher_shares_among_its_own_heads(case):
    net = network(*case[:3])
    teacher = Teacher(net)
    twin = teacher.network
    for task in net.tasks:
        theirs = {id(p) for part in twin.head(task).shared_parts() for p in part.parameters()}
        assert theirs == {id(p) for p in twin.shared.parameters()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    before = {name: value.clone() for name, value in twin.state_dict().items()}
    teacher.update(net, 0.8)
    for name, value in net.state_dict().items():
        if value.is_floating_point():  # moved once, not once for each head
            torch.testing.assert_close(
                twin.state_dict()[name], 0.8 * before[name] + 0.2 * value, rtol=1e-5, atol=1e-6
            )
    teacher.update(net, 0.0)
    for task in net.tasks:
        torch.testing.assert_close(losses(twin, task), losses(net.eval(), task))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_shared_and_own_parts_of_equal_weights_do_the_same(case):
    detector, args, shared, _ = case
    sharing, apart = network(detector, args, shared), network(detector, args, None)
    state = sharing.state_dict()
    for task in sharing.tasks:
        for part in sharing.shared.values():
            for name, value in part.state_dict().items():
                place = "" if name.startswith("neck.") else "detector."
                name = name.replace("level_embed.weight", "level_embed")
                state[f"heads.{task}.{place}{name}"] = value
    state = {name: value for name, value in state.items() if not name.startswith("shared.")}
    apart.load_state_dict(state)
    for task in sharing.tasks:
        torch.testing.assert_close(losses(apart, task), losses(sharing, task), rtol=0, atol=0)
        one, other = (net.eval().predict(task, IMAGES) for net in (apart, sharing))
        torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=0)
        sharing.train(), apart.train()


def test_what_is_shared_is_what_foundation_x_shares():
    memory = {"detector.memory_trans_fc", "detector.memory_trans_norm"}
    own = {"detector.bbox_head", "detector.query_embedding", "detector.dn_query_generator"}
    x, plus = (network("dino", SMALL, shared) for shared in ("encoder", "decoder"))
    assert set(x.shared["detector_encoder"]) == {"neck", "encoder", "level_embed"}
    assert own_names(x, "one/boxes") == own | memory | {"detector.decoder"}
    assert set(plus.shared["detector_decoder"]) == {
        "decoder",
        "memory_trans_fc",
        "memory_trans_norm",
    }
    assert own_names(plus, "two/boxes") == own
    for net in (x, plus):
        assert net.part("shared.detector_encoder", "one/boxes") is net.shared["detector_encoder"]


def test_a_shared_parts_start_does_not_depend_on_who_asks_first():
    tasks = list(network("dino", SMALL, "decoder").tasks.values())
    states = []
    for order in (tasks, tasks[::-1]):
        torch.manual_seed(0)
        states.append(Network(BACKBONE, None, order).shared.state_dict())
    assert set(states[0]) == set(states[1])
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_shared_parts_start_as_mmdets():
    """Xavier-uniform matrices and mmdet's own start of the sampling points."""
    net = network("dino", SMALL, "decoder")
    alone = network("dino", SMALL, None).head("one/boxes").detector
    for part, name in (("detector_encoder", "encoder"), ("detector_decoder", "decoder")):
        ours, theirs = net.shared[part][name], getattr(alone, name)
        for (where, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if other.std() == 0 or "sampling_offsets" in where:
                torch.testing.assert_close(one, other)  # no chance in it
            elif not where.endswith("bias"):
                spread = (one.std() / other.std()).detach()
                assert float(spread) == pytest.approx(1, abs=0.15), where


def test_groups_of_another_name_share_apart():
    net = network("dino", SMALL, "encoder", {"shared_name": "abdomen"})
    assert list(net.shared) == ["detector_encoder", "abdomen_encoder"]


ERRORS = {
    "unknown": (("dino", SMALL, "all"), {}, "expected shared to be one of .*'neck', 'encoder', 'd"),
    "no decoder": (("fcos", DENSE, "decoder"), {}, r"one of \['neck', 'encoder'\] or null.*'FCOS'"),
    "other layers": (
        ("dino", SMALL, "encoder"),
        {"detector_args": {**SMALL, "ffn": 64}},
        "shared part 'detector_encoder' was made for one/boxes",
    ),
    "no name": (("dino", SMALL, "encoder"), {"shared_name": "a.b"}, "'a.b_encoder'; expected a na"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_fix(name):
    args, two, message = ERRORS[name]
    with pytest.raises(ConfigError, match=message):
        network(*args, two)


def test_tasks_that_share_an_encoder_may_differ_elsewhere():
    two = {"detector_args": {**SMALL, "queries": 20, "decoder_layers": 1}}
    net = network("dino", SMALL, "encoder", two)
    for task in net.tasks:
        assert all(term.isfinite() for term in losses(net, task).values())


TRANSFORMERS = {name: case for name, case in CASES.items() if "detr" in name or "dino" in name}


@pytest.mark.parametrize("case", TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_the_teacher_looks_where_the_student_looks(case):
    net = network(*case[:3]).train()
    teacher = copy.deepcopy(net).requires_grad_(False).eval()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    for task in net.tasks:
        features, output = net.run(task, IMAGES, TARGET)
        student = net.head(task).consistency(features, output)
        logits = net.head(task).consistency(features, output, ["logits"])["logits"]
        assert logits.shape == (2, len(CLASSES[task.split("/")[0]]), 2, 12)  # none of noisy queries
        alone = teacher.run(task, IMAGES)[1].raw
        theirs_features, theirs_output = teacher.run(task, IMAGES.flip(0), like=output)
        theirs = teacher.head(task).consistency(theirs_features, theirs_output)
        assert list(student) == list(theirs) == ["decoder", "tokens"]
        assert student["decoder"].shape == (2, 32, 2, 12)  # images, width, layers, no noisy queries
        for name, tensor in student.items():
            assert theirs[name].shape == tensor.shape
            assert not theirs[name].requires_grad
            net.zero_grad()
            tensor.square().mul(torch.rand_like(tensor)).sum().backward(retain_graph=True)
            gradient = net.backbone.get_parameter("model.stem.0.weight").grad
            assert gradient.any(), name
        if alone.proposals is not None:
            chosen = output.raw.proposals.chosen
            assert torch.equal(theirs_output.raw.proposals.chosen, chosen)
            assert not torch.equal(alone.proposals.chosen, chosen)  # it would have looked elsewhere
            assert student["tokens"].shape == (2, 32, 12)


def test_consistency_compares_the_same_queries_of_equal_networks():
    net = network("dino", SMALL, None).eval()
    features, output = net.run("two/boxes", IMAGES, TARGET)
    student = net.head("two/boxes").consistency(features, output)
    features, output = net.run("two/boxes", IMAGES, like=output)
    teacher = net.head("two/boxes").consistency(features, output)
    assert output.raw.noise is None
    torch.testing.assert_close(student, teacher, rtol=1e-4, atol=1e-5)


def test_locks_of_foundation_x_leave_the_tasks_own_layers_to_learn():
    """X+: everything but this task's queries, box and class layers is frozen (spec)."""
    net = network("dino", SMALL, "decoder")
    for name in ("backbone", "shared.detector_encoder", "shared.detector_decoder"):
        net.part(name, "one/boxes").requires_grad_(False).eval()
    free = losses(network("dino", SMALL, "decoder").train(), "one/boxes")
    terms = losses(net, "one/boxes")
    assert set(terms) == set(free)  # noisy queries and proposals are taught as ever
    sum(terms.values()).backward()
    learning = {name for name, p in net.named_parameters() if p.grad is not None}
    assert learning == {
        name for name, _ in net.named_parameters() if name.startswith("heads.one/boxes.")
    }
