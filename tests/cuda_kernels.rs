//! The table of kernels and the launch structs agree with the C++ sources, as the emulator has compiled them.

#![cfg(feature = "emulator")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::mem::{offset_of, size_of};

use inducer_attention::cuda::kernels::{KERNELS, Pass};
use inducer_attention::cuda::params::{
    Adapter, AdapterGradients, BackwardParams, ForwardParams, Problem, Strided, Tensor,
};
use inducer_attention::emulator;

#[test]
fn the_table_agrees_with_the_sources() {
    let there: BTreeMap<_, _> = emulator::kernels().into_iter().map(|k| (k.name.clone(), k)).collect();
    for kernel in KERNELS {
        // A pass whose source is still to be written has no kernel there.
        let Some(compiled) = there.get(kernel.name) else { continue };
        assert_eq!(kernel.threads(), compiled.threads, "threads of {}", kernel.name);
        assert_eq!(kernel.shared_bytes(), compiled.shared_bytes, "shared memory of {}", kernel.name);
        let params = match kernel.pass {
            Pass::Forward => size_of::<ForwardParams>(),
            Pass::BackwardPrepare | Pass::Backward | Pass::BackwardFinish => size_of::<BackwardParams>(),
        };
        assert_eq!(params, compiled.params_bytes, "parameters of {}", kernel.name);
    }
    assert!(KERNELS.iter().any(|k| there.contains_key(k.name)), "the emulator has no kernel of the table");
}

unsafe extern "C" {
    /// See `kernels/emulator/layout.cpp`.
    fn inducer_params_layout(name: *const c_char) -> i64;
}

/// Size of a C++ struct, or offset of a field, in bytes.
fn there(name: &CStr) -> i64 {
    // SAFETY: the function reads a string.
    unsafe { inducer_params_layout(name.as_ptr()) }
}

#[test]
fn launch_structs_are_laid_out_as_in_the_header() {
    macro_rules! layout {
        ($name:ident: $($field:ident),*) => {
            let c = |text: &'static str| CStr::from_bytes_with_nul(text.as_bytes()).expect("it ends with NUL");
            assert_eq!(there(c(concat!(stringify!($name), "\0"))), size_of::<$name>() as i64, stringify!($name));
            $(assert_eq!(
                there(c(concat!(stringify!($name), ".", stringify!($field), "\0"))),
                offset_of!($name, $field) as i64,
                concat!(stringify!($name), ".", stringify!($field))
            );)*
        };
    }
    layout!(Tensor: batch, head, row);
    layout!(Strided: stride);
    layout!(Adapter: down_weight, down_bias, up_weight, up_bias, down_weight_head, down_weight_row, down_bias_head, up_weight_head, up_weight_row, up_bias_head, rank, identity, is_f32);
    layout!(Problem: q, k, v, prefix_k, prefix_v, key, value, logit, logit_stride, query_lengths, key_lengths, key_starts, cu_seqlens_q, cu_seqlens_k, positions, alibi_slopes, alibi_sequence_stride, sequences, query_heads, kv_heads, rows, keys, head_dim, prefix_len, window_left, window_right, flags, key_kind, value_kind, scale, softcap, dropout_threshold, dropout_scale, dropout_key);
    layout!(ForwardParams: problem, o, u, attn, lse, row_tiles, pairs, blocks, group, folded);
    layout!(AdapterGradients: down_weight, down_bias, up_weight, up_bias);
    layout!(BackwardParams: problem, saved, d_o, d_u, lse, d_lse, d_q, d_k, d_v, d_prefix_k, d_prefix_v, d_key, d_value, d_logit, d_q_sum, row_factor, row_constant, partials, turns, ticket, row_tiles, prepare_tiles, chunks, key_tiles, prefix_tiles, partial_size, finish_blocks, gradient_blocks, sequence_blocks);
}
