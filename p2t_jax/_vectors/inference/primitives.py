"""The names of JAX's primitives and of their parameters, as JAX 0.10 to 0.12 have them.

They are not documented. An operation that is not here and that no rule in `flow` knows, or one with
a parameter that is not here, makes `infer_vectors` ask for what goes into it: a new name costs a
question, not a wrong answer.
"""

from collections.abc import Iterable

# Each element of the results is made of the elements of the operands in its place.
ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2"),
    *("atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "complex", "conj"),
    *("convert_element_type", "copy", "cos", "cosh", "digamma", "div", "eq"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma"),
    *("igammac", "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p"),
    *("logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or"),
    *("polygamma", "population_count", "pow", "real", "reduce_precision"),
    *("regularized_incomplete_beta", "rem", "round", "rsqrt", "shift_left"),
    *("shift_right_arithmetic", "shift_right_logical", "sign", "sin"),
    *("sinh", "sqrt", "square", "sub", "tan", "tanh", "xor", "zeta"),
}

# Each operand is combined with itself on other devices,
SUMS_OF_DEVICES = {"pmax", "pmin", "psum", "psum_invariant"}
# or is that of another device.
COLLECTIVES = {"ppermute", "pvary"}

# The results are the operands.
IDENTITY = {
    *("layout_constraint", "name", "optimization_barrier", "reshard"),
    *("sharding_constraint", "stop_gradient"),
}

# The dimensions `axes` are left out.
REDUCTIONS = {
    *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
    *("reduce_prod", "reduce_sum", "reduce_xor"),
}

# What calls a program with its operands, and the parameters in which that may be.
CALLS = {
    *("closed_call", "composite", "custom_jvp_call", "custom_vjp_call", "custom_vmap_call"),
    *("jit", "remat2"),
}
PROGRAMMES = ("jaxpr", "call_jaxpr", "call")

# Random numbers: made of keys, they are not inputs.
NOISE = ("random_", "rng_", "threefry")

# For each primitive that a rule knows: the parameters that the rule reads, and those that make no
# difference to it. What is not here has none.
_CALL = " ".join(PROGRAMMES)
_JIT = (
    "compiler_options_kvs ctx_mesh donated_invars in_layouts in_shardings inline keep_unused name "
    "out_layouts out_shardings"
)
_CONV = (
    "lhs_dilation out_sharding padding precision preferred_element_type rhs_dilation window_strides"
)
PARAMETERS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("cbrt", "cos", "erfc", "exp", "exp2", "expm1"), ("", "accuracy")),
    **dict.fromkeys(("log", "log1p", "logistic", "rsqrt", "sin"), ("", "accuracy")),
    **dict.fromkeys(("sqrt", "tan", "tanh"), ("", "accuracy")),
    **dict.fromkeys(REDUCTIONS, ("axes", "index_dtype out_sharding")),
    **dict.fromkeys(SUMS_OF_DEVICES, ("axes axis_index_groups", "")),
    "all_gather": ("axis_index_groups tiled", "all_gather_dimension axis_name axis_size"),
    "broadcast_in_dim": ("broadcast_dimensions", "shape sharding"),
    "closed_call": (_CALL, ""),
    "composite": (_CALL, "attributes name version"),
    "concatenate": ("dimension", ""),
    "cond": ("branches", ""),
    "conj": ("", "input_dtype"),
    "conv_general_dilated": ("batch_group_count dimension_numbers feature_group_count", _CONV),
    "convert_element_type": ("", "new_dtype sharding weak_type"),
    "custom_jvp_call": (_CALL, "jvp_jaxpr_fun num_consts symbolic_zeros"),
    "custom_vjp_call": (_CALL, "bwd fwd_jaxpr_thunk num_consts out_trees symbolic_zeros"),
    "custom_vmap_call": (_CALL, "in_tree out_tree rule"),
    "dot_general": ("dimension_numbers", "out_sharding precision preferred_element_type"),
    "dynamic_slice": ("", "slice_sizes"),
    "gather": (
        "dimension_numbers slice_sizes",
        "fill_value indices_are_sorted mode unique_indices",
    ),
    "integer_pow": ("", "y"),
    "iota": ("dimension", "dtype shape sharding"),
    "jit": (_CALL, _JIT),
    "layout_constraint": ("", "layout"),
    "mul": ("", "out_dtype"),
    "name": ("", "name"),
    "pad": ("padding_config", ""),
    "ppermute": ("", "axis_name perm"),
    "pvary": ("", "axes"),
    "ragged_dot_general": (
        "group_offset ragged_dot_dimension_numbers",
        "out_sharding precision preferred_element_type",
    ),
    "reduce_precision": ("", "exponent_bits mantissa_bits"),
    "remat2": (_CALL, "differentiated policy prevent_cse"),
    "reshape": ("dimensions", "new_sizes sharding"),
    "reshard": ("", "concrete_mesh dst_sharding"),
    "rev": ("dimensions", ""),
    "round": ("", "rounding_method"),
    # The program and the operands tell the same as the counts, which are other ones in JAX 0.12.
    "scan": ("jaxpr", "ft_in ft_out length num_carry num_consts reverse unroll"),
    "shard_map": ("in_specs jaxpr", "check_vma mesh newly_manual_axes out_specs"),
    "sharding_constraint": ("", "context_mesh layout sharding unconstrained_dims"),
    "slice": ("limit_indices start_indices strides", ""),
    "split": ("axis", "sizes"),
    "squeeze": ("dimensions", ""),
    "transpose": ("permutation", ""),
    "unstack": ("axis", ""),
    "while": ("body_jaxpr body_nconsts cond_jaxpr cond_nconsts", ""),
}


def has_unknown_parameters(name: str, parameters: Iterable[str]) -> bool:
    """Whether a primitive has a parameter that its rule neither reads nor may ignore."""
    return not set(parameters) <= set(" ".join(PARAMETERS.get(name, ("", ""))).split())
