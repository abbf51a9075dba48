"""The adapters under the libraries people use: transformers' own methods, Trainer, AutoPeft, torch.compile."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from factories import PRESETS, ROOT, adapted, apart, base_logits, base_model, layers, logits, move, tolerance
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model, get_peft_model_state_dict

from nlora_lab.adapters import NLoraLayer, inttune, nlora, slora

presets = pytest.mark.parametrize("name", list(PRESETS))


def make(name, architecture="llama", r=4, **options):
    torch.manual_seed(1)
    return get_peft_model(base_model(architecture), PRESETS[name](r, **options)).eval()


@presets
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")  # PEFT, of every second adapter
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_transformers_own_methods(name, architecture, ids, tmp_path):
    saved = make(name, architecture)
    move(saved)
    tuned, base = logits(saved, ids), base_logits(architecture, ids)
    saved.save_pretrained(tmp_path / "one")
    model = base_model(architecture)
    model.load_adapter(str(tmp_path / "one"), "loaded")
    assert apart(logits(model, ids), tuned) < 1e-6
    assert {p.dtype for n, p in model.named_parameters() if "nlora_" in n} == {torch.float32}
    model.disable_adapters()
    assert torch.equal(logits(model, ids), base)
    model.enable_adapters()
    assert apart(logits(model, ids), tuned) < 1e-6
    model.add_adapter(PRESETS["nlora"](2), "fresh")
    assert model.active_adapters() == ["fresh"]
    assert torch.equal(logits(model, ids), base)
    move(model)
    fresh = logits(model, ids)
    model.set_adapter("loaded")
    assert apart(logits(model, ids), tuned) < 1e-6
    model.set_adapter("fresh")
    model.save_pretrained(tmp_path / "two")  # the active adapter alone
    with pytest.warns(UserWarning, match="fresh was active which is now deleted"):
        model.delete_adapter("fresh")
    assert apart(logits(model, ids), tuned) < 1e-6
    again = PeftModel.from_pretrained(base_model(architecture), tmp_path / "two").eval()
    assert apart(logits(again, ids), fresh) < 1e-6


def test_transformers_loads_into_a_half_precision_model_without_rounding(tmp_path, ids):
    model = make("nlora")
    move(model)
    model.save_pretrained(tmp_path)
    half = base_model("llama", torch.bfloat16)
    half.load_adapter(str(tmp_path))
    for a, b in zip(layers(half), layers(model), strict=True):
        assert all(torch.equal(x.float(), y) for x, y in zip(a.factors("default"), b.factors("default"), strict=True))


@presets
def test_autopeft_finds_base_and_adapter(name, ids, tmp_path):
    base_model("llama").save_pretrained(tmp_path / "base")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    model = get_peft_model(base, PRESETS[name](4, task_type="CAUSAL_LM")).eval()
    move(model)
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    assert apart(logits(loaded, ids), logits(model, ids)) < 1e-6
    prompt, loaded.generation_config.eos_token_id = ids[:, :4], None
    with torch.no_grad():
        generated = loaded.generate(input_ids=prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
        tokens = [generated[:, :4]]
        for _ in range(5):  # the same without a cache, one token at a time
            tokens.append(model(torch.cat(tokens, 1)).logits[:, -1:].argmax(-1))
    assert generated.shape == (3, 9)
    assert torch.equal(generated, torch.cat(tokens, 1))


@presets
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_cpu_memory_loading_rounds_nothing_and_computes_nothing(name, dtype, ids, tmp_path, monkeypatch):
    model = make(name)
    move(model)
    model.save_pretrained(tmp_path)
    monkeypatch.setattr("nlora_lab.adapters.layer.start_factors", lambda *a: pytest.fail("a start was computed"))
    loaded = PeftModel.from_pretrained(base_model("llama", dtype), tmp_path, low_cpu_mem_usage=True).eval()
    for a, b in zip(layers(loaded), layers(model), strict=True):
        for state in ("factors", "start_factors"):
            pairs = zip(getattr(a, state)("default"), getattr(b, state)("default"), strict=True)
            assert all(torch.equal(x, y) and x.dtype == torch.float32 for x, y in pairs)
    assert apart(logits(loaded, ids), logits(model, ids)) < (1e-6 if dtype == torch.float32 else 0.1)


@presets
def test_start_factors_come_from_the_file_not_from_the_base(name, ids, tmp_path):
    """On a base that has changed since, the update is the one that was trained, not a new one."""
    model = make(name)
    move(model)
    updates = [layer.get_delta_weight("default") for layer in layers(model)]
    model.save_pretrained(tmp_path)
    other = base_model("llama")
    with torch.no_grad():
        for p in other.parameters():
            p *= 1.1
    loaded = PeftModel.from_pretrained(other, tmp_path)
    assert all(torch.equal(u, m.get_delta_weight("default")) for u, m in zip(updates, layers(loaded), strict=True))


@presets
def test_a_model_on_the_meta_device(name, ids, tmp_path):
    saved = make(name)
    move(saved)
    saved.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = get_peft_model(base_model("llama"), PRESETS[name](4))
    assert all(p.is_meta for n, p in model.named_parameters() if "nlora_" in n)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == sum(
        p.numel() for p in saved.parameters() if p.requires_grad
    )
    model.load_state_dict(saved.state_dict(), assign=True)
    loaded = get_peft_model(base_model("llama"), PRESETS[name](4)).eval()
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(logits(loaded, ids), logits(saved, ids))


COMPILED = """
    import sys, warnings, torch
    sys.path.insert(0, sys.argv[1])
    from factories import PRESETS, apart, base_model, move
    from peft import get_peft_model

    ids = torch.randint(0, 97, (3, 11), generator=torch.Generator().manual_seed(3))
    for name in ("nlora", "inttune"):
        torch.manual_seed(1)
        torch.compiler.reset()
        model = get_peft_model(base_model("llama"), PRESETS[name](4)).eval()
        move(model)
        plain = model(ids, labels=ids)
        plain.loss.backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        model.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = torch.compile(model, backend="aot_eager", fullgraph=True)(ids, labels=ids)
            out.loss.backward()
        assert apart(out.logits.detach(), plain.logits.detach()) < 1e-5
        for n, p in model.named_parameters():
            if p.requires_grad:
                assert torch.allclose(p.grad, grads[n], atol=1e-4 * float(grads[n].abs().max()))
        print(name, "equal")
"""


def test_compiled_it_computes_the_same():
    """In a process of its own: the shape checks of the tests wrap functions, and a wrapper cannot be compiled."""
    command = [sys.executable, "-c", textwrap.dedent(COMPILED), str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "nlora equal\ninttune equal\n", done.stderr[-2000:]


@presets
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(name, reentrant, ids):
    grads = []
    for checkpointing in (False, True):
        model = make(name)
        move(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        model(ids, labels=ids).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(grads[0]) >= 14
    assert all(torch.allclose(a, b, atol=1e-6 * float(b.abs().max())) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", ["nlora", "inttune", "slora"])
def test_the_trainer_stops_and_resumes(name, ids, tmp_path):
    """Three steps, a checkpoint and three more steps in a new model give the same as six steps."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    data = Dataset.from_list([{"input_ids": row.tolist(), "labels": row.tolist()} for row in ids.repeat(4, 1)])

    def train(folder, resume=None, **more):
        settings = {
            "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "save_steps": 3, "seed": 3,
            "report_to": "none", "use_cpu": True, "lr_scheduler_type": "constant", "disable_tqdm": True,
            "logging_strategy": "no", "dataloader_pin_memory": False,
        }  # fmt: skip
        model = make(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = Trainer(model, TrainingArguments(str(folder), **{**settings, **more}), train_dataset=data)
            trainer.train(resume_from_checkpoint=resume)
        return model.eval()

    straight = train(tmp_path / "a")
    resumed = train(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoint-3"))
    assert apart(logits(straight, ids), base_logits("llama", ids)) > 1e-3
    assert apart(logits(resumed, ids), logits(straight, ids)) < 1e-5
    final = PeftModel.from_pretrained(base_model("llama"), tmp_path / "a" / "checkpoint-6").eval()
    assert apart(logits(final, ids), logits(straight, ids)) < 1e-6


def test_print_trainable_parameters(capsys):
    make("inttune").print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {14 * 16} ||")
    assert make("nlora").get_nb_trainable_parameters()[0] == 3936


def test_modules_to_save_train_and_come_back(ids, tmp_path):
    model = make("nlora", modules_to_save=["lm_head"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lm_head.modules_to_save" in n for n in trained)
    assert not any("original_module" in n for n in trained)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_model("llama"), tmp_path).eval()
    assert apart(logits(loaded, ids), logits(model, ids)) < 1e-6
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), base_logits("llama", ids))


def test_the_state_dict_of_one_adapter_holds_no_other(ids):
    model = adapted("llama", ("nlora", None))
    model.add_adapter("second", inttune(3))
    keys = {
        a: set(get_peft_model_state_dict(model, adapter_name=a, save_embedding_layers=False)) for a in model.peft_config
    }
    assert {k.split(".")[-2] for k in keys["default"]} == {f"nlora_{f}{z}" for f in "ANB" for z in ("", "0")}
    assert {k.split(".")[-2] for k in keys["second"]} == {"nlora_A", "nlora_N", "nlora_B", "nlora_N0"}
    assert sum(isinstance(m, NLoraLayer) for m in model.modules()) == 14


def test_merging_and_unmerging_in_half_precision(ids):
    for dtype in (torch.bfloat16, torch.float16):
        torch.manual_seed(1)
        model = get_peft_model(base_model("llama", dtype), nlora(4, pivots="cross")).eval()
        move(model)
        tuned = logits(model, ids)
        model.merge_adapter()
        assert layers(model)[0].base_matrix().dtype == dtype
        assert apart(logits(model, ids), tuned) < 0.1
        model.unmerge_adapter()
        assert apart(logits(model, ids), tuned) < 0.1
    assert tolerance(model) < 1e-3
    assert slora(4).residual is False
