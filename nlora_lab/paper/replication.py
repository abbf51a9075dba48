"""What would settle the question at the paper's own scale: commands, not results."""

from __future__ import annotations

from collections.abc import Sequence

STARTS = ("True", "s_lora", "n_lora")  # the released script's names of LoRA, SLoRA and NLoRA
RATES = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3)


def plan(starts: Sequence[str] = STARTS, rates: Sequence[float] = RATES, seeds: int = 5) -> str:
    """Return a shell script that repeats the paper's comparison, with more rates and seeds.

    The script uses the authors' released settings. Nobody of this project has run it.

    Args:
        starts: the methods by their names in the released script: True (LoRA), s_lora, n_lora, pissa.
        rates: the learning rates to try with each method.
        seeds: the number of seeds at the best rate of each method.

    Returns:
        The script, as text.
    """
    start_names, rate_list = " ".join(map(str, starts)), " ".join(f"{rate:g}" for rate in rates)
    runs = len(starts) * (len(rates) + seeds - 1)
    return f"""\
# A plan, not a result: {len(starts)} starts at {len(rates)} rates each, then {seeds} seeds at the best rate of each.
# {runs} runs of LLaMA-2-7B, set up as in github.com/TracyGuo2001/NLoRA, scripts/run_nlora.sh.
# Choose the rate of a start by the loss on items of MetaMathQA after the first 100,000, never on GSM8K.
# Test on the 1,319 questions of GSM8K once. Keep every answer, and compare the answers question by question.
# 1 x 4 x 4 GPUs is a batch of 16. The comment in the script says 128, which takes 32 in the place of the middle 4.
for start in {start_names}; do for rate in {rate_list}; do
  seed=0  # then, at the best rate alone: {" ".join(map(str, range(seeds)))}
  deepspeed --include=localhost:0,1,2,3 nlora.py --deepspeed configs/ds_config_zero2_no_offload.json \\
    --model_name_or_path meta-llama/Llama-2-7b-hf --use_lora True --init_lora_weights $start \\
    --target_modules q_proj,v_proj,k_proj,o_proj,gate_proj,down_proj,up_proj \\
    --lora_rank 128 --lora_alpha 128 --lora_dropout 0 --data_path meta-math/MetaMathQA \\
    --dataset_field query response --dataset_split "train[:100000]" --model_max_length 512 \\
    --num_train_epochs 1 --per_device_train_batch_size 1 --gradient_accumulation_steps 4 \\
    --learning_rate $rate --seed $seed --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine \\
    --merge True --output_dir runs/$start-$rate-$seed
done; done"""
