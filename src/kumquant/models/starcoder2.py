"""StarCoder2: layer norms, a plain MLP, biases if use_bias; the embedding twice, the second time as the head."""

from __future__ import annotations

from .family import Family
from .llama import LAYER
from .rules import layer_norm, linear, moved, qkv, same

STARCODER2 = Family(
    model_type="starcoder2",
    tensors=(
        moved("head", "lm_head.weight", "model.embed_tokens.weight", "linear", "vocab", "hidden", when="tied"),
        same("head", "lm_head.weight", "linear", "vocab", "hidden", when="not tied"),
        same("embed", "model.embed_tokens.weight", "embedding", "vocab", "hidden"),
        *layer_norm("attn_norm", LAYER + "input_layernorm"),
        *layer_norm("mlp_norm", LAYER + "post_attention_layernorm"),
        *qkv(LAYER + "self_attn.wqkv_pack", LAYER + "self_attn.", bias="use_bias"),
        *linear("o", LAYER + "self_attn.o_proj", "hidden", "q", bias="use_bias"),
        *linear("up", LAYER + "mlp.c_fc", "ffn", "hidden", bias="use_bias"),
        *linear("down", LAYER + "mlp.c_proj", "hidden", "ffn", bias="use_bias"),
        *layer_norm("final_norm", "model.norm"),
    ),
    aliases={"rms_norm_eps": "norm_epsilon"},
    defaults={"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-5, "use_bias": True, "tie_word_embeddings": True,
              "sliding_window": None},
    flags={"use_bias": "use_bias"},
    window="all layers",
    traits={"norm": "layer"},
    not_in_format=("not tied",),
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
        "norm_epsilon", "intermediate_size", "rope_theta", "use_bias", "use_cache", "bos_token_id", "eos_token_id",
        "context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size", "head_dim",
    ),
)
