"""The names of JAX's primitives, which are not documented, as JAX 0.10 to 0.12 have them.

An operation that is not here, and that no rule in `flow` knows, makes `infer_vectors` ask for the
parameters that go into it: a new name costs a question, not a wrong answer.
"""

# Each element of the results is made of the elements of the operands in its place.
ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2"),
    *("atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil", "clamp", "complex", "conj"),
    *("convert_element_type", "copy", "copy_p", "cos", "cosh", "digamma", "div", "eq"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma"),
    *("igammac", "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p"),
    *("logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or"),
    *("polygamma", "population_count", "pow", "real", "reduce_precision"),
    *("regularized_incomplete_beta", "rem", "round", "rsqrt", "shift_left"),
    *("shift_right_arithmetic", "shift_right_logical", "sign", "sin"),
    *("sinh", "sqrt", "square", "sub", "tan", "tanh", "xor", "zeta"),
}

# Each operand is combined with itself on other devices.
COLLECTIVES = {
    *("pbroadcast", "pcast", "pmax", "pmean", "pmin", "ppermute"),
    *("psum", "psum2", "psum_invariant", "pvary"),
}

# The results are the operands.
IDENTITY = {
    *("layout_constraint", "mesh_cast", "name", "optimization_barrier", "reshard"),
    *("sharding_constraint", "stop_gradient"),
}

# The dimensions `axes` are left out.
REDUCTIONS = {
    *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
    *("reduce_prod", "reduce_sum", "reduce_xor"),
}

# The parameter in which a primitive has the programme that it calls with its operands.
CALLS = {
    **dict.fromkeys(("checkpoint", "composite", "jit", "pjit", "remat", "remat2"), "jaxpr"),
    **dict.fromkeys(("closed_call", "core_call", "custom_jvp_call"), "call_jaxpr"),
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "custom_vmap_call": "call",
}

# Random numbers: made of keys, they are not inputs.
NOISE = ("random_", "rng_", "threefry")
