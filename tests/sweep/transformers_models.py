"""transformers: image, audio and text classifiers, made small from their configurations."""

import torch

from sweep.sample import Sample, Skip, check_size

BATCH, WIDTH, LENGTH = 2, 32, 8
SMALL = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "embed_dim", "dim", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim"),
        WIDTH,
    ),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "dense_intermediate_size"), 16),
    **dict.fromkeys(("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layer"), 2),
    **dict.fromkeys(("num_decoder_layers", "n_layers", "num_encoder_layers", "num_self_attends_per_block"), 2),
    **dict.fromkeys(("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("n_head", "n_heads", "num_self_attention_heads", "num_cross_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "multi_query_group_num"), 2),
    **dict.fromkeys(("vocab_size", "type_vocab_size_large"), 99),
    **{
        "head_dim": 8,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "num_labels": 5,
        "d_kv": 8,
    },
    **{"d_latents": 32, "num_latents": 8, "max_position_embeddings": 64, "n_positions": 64, "image_size": 64},
    **{"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "rotary_dim", "attention_head_dim"), 8),
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "pooler_hidden_size": 32, "entity_vocab_size": 9, "entity_emb_size": 32},
    **{"hidden_dropout_prob": 0.1, "pad_token_id": 0, "classifier_proj_size": 16, "num_codevectors_per_group": 8},
}


def shrink(config, seen=()):
    """Make a configuration small, as far as its names are known."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict") and id(value) not in seen:
            shrink(value, (*seen, id(config)))
        elif name == "conv_dim" and not (isinstance(value, (list, tuple)) and len(value) == 7):
            continue
        elif name == "image_size" and not isinstance(value, int):
            continue
        elif name in SMALL and value is not None and isinstance(value, (int, float, list, tuple)):
            setattr(config, name, SMALL[name])
        elif name == "depths":
            setattr(config, name, [1] * len(value))
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and kinds:  # one layer of each kind
        config.layer_types = ([*dict.fromkeys(kinds)] * 2)[:2]
    if hasattr(config, "kv_lora_rank"):
        config.num_key_value_heads = config.num_attention_heads
    config.num_labels, config.pad_token_id = 5, 0
    config._experts_implementation = "eager"  # the grouped one knows no float64
    return config


class Kind:
    """The classifiers of one modality: how inputs look, and by which name they go."""

    def __init__(self, mapping, inputs):
        self.mapping, self.inputs = mapping, inputs

    def names(self):
        from transformers.models.auto import modeling_auto

        return list(getattr(modeling_auto, self.mapping))

    def builds(self, name):
        import transformers
        from transformers.models.auto import CONFIG_MAPPING, modeling_auto

        classes = getattr(modeling_auto, self.mapping)[name]
        model = getattr(transformers, classes if isinstance(classes, str) else classes[0], None)
        if model is None:
            raise Skip("the class is not in transformers")

        def build(small, argument, shape):
            def make():
                config = CONFIG_MAPPING[name]()
                config = shrink(config) if small else few_layers(config)
                with torch.device("meta"):  # some default to hundreds of gigabytes
                    check_size(model(config))
                net = model(config)
                generator = torch.Generator().manual_seed(1)
                x = torch.randn(shape(config), dtype=torch.float64, generator=generator)
                return Sample(net, x, lambda m, z: m(**{argument: z}), type(net).__name__)

            return make

        return [build(small, *each) for small in (True, False) for each in self.inputs]


def few_layers(config):
    for name in ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 2)
    config.num_labels, config.pad_token_id = 5, 0
    return config


def width_of(config):
    text = config.get_text_config()
    return next(
        getattr(text, n)
        for n in ("input_embedding_size", "embedding_size", "hidden_size", "d_model", "n_embd", "dim")
        if hasattr(text, n)
    )


def image(size):
    return lambda config: (BATCH, 3, size, size)


IMAGES = Kind(
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", [("pixel_values", image(size)) for size in (64, 32, 128, 224)]
)
AUDIO = Kind(
    "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    [
        ("input_values", lambda config: (BATCH, 8000)),
        ("input_values", lambda config: (BATCH, 1024, 128)),
        ("input_features", lambda config: (BATCH, 40, getattr(config, "feature_projection_input_dim", 160))),
        ("input_features", lambda config: (BATCH, 80, 2 * getattr(config, "max_source_positions", 100))),
    ],
)
TEXT = Kind(
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    [
        ("inputs_embeds", lambda config: (BATCH, LENGTH, width_of(config))),
        ("inputs_embeds", lambda config: (BATCH, 32, width_of(config))),
    ],
)
