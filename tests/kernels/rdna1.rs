//! What the code for RDNA1 (gfx1010) may consist of, after AMD's "RDNA 1.0 Instruction Set
//! Architecture" reference: a compiler for many cards could emit what this one lacks.

use std::collections::BTreeSet;

/// Never, whatever else: (part of a line of assembly, why).
const ABSENT: &[(&str, &str)] = &[
    ("v_dot", "dot products came with gfx1011"),
    ("v_wmma", "there are no matrix units"),
    ("v_mfma", "there are no matrix units"),
    ("v_smfmac", "there are no matrix units"),
    ("v_pk_fma_f32", "packed f32 is of gfx90a and later"),
    ("v_pk_mul_f32", "packed f32 is of gfx90a and later"),
    ("v_pk_add_f32", "packed f32 is of gfx90a and later"),
    ("v_dual_", "two instructions at once came with gfx11"),
    ("bf16", "no conversion and no arithmetic of bf16"),
    ("_atomic_", "no kernel adds by atomics: the order of sums is fixed"),
    ("row_bcast", "that lane pattern ended with gfx9"),
    ("wave_shl", "that lane pattern ended with gfx9"),
    ("scratch_", "no kernel has memory of its own"),
    ("buffer_", "scratch is the only use compilers have for buffers"),
    ("src_shared_base", "an address of shared memory taken for a general one"),
    ("s_swappc", "calls need a stack"),
];

/// Instructions that the card has, by how they begin.
const FAMILIES: &[&str] = &[
    "ds_read_b",
    "ds_read_i",
    "ds_read_u",
    "ds_read2_b",
    "ds_read2st64_b",
    "ds_write_b",
    "ds_write2_b",
    "ds_write2st64_b",
    "flat_load_",
    "flat_store_",
    "global_load_dword",
    "global_load_s",
    "global_load_u",
    "global_store_",
    "s_cbranch_",
    "s_cmp_",
    "s_cmpk_",
    "s_load_dword",
    "v_cmp_",
    "v_cmpx_",
];

/// Instructions that the card has, without the ending of their encoding.
const INSTRUCTIONS: &str = "
    ds_bpermute_b32 ds_permute_b32 ds_swizzle_b32
    s_abs_i32 s_add_i32 s_add_u32 s_addc_u32 s_addk_i32 s_and_b32 s_and_b64 s_and_saveexec_b32
    s_andn2_b32 s_andn2_b64 s_andn2_saveexec_b32 s_ashr_i32 s_ashr_i64 s_barrier s_bfe_i32 s_bfe_u32
    s_bfe_u64 s_bfm_b32 s_bitcmp0_b32 s_bitcmp1_b32 s_bitset0_b32 s_bitset1_b32 s_branch s_brev_b32
    s_clause s_code_end s_cselect_b32 s_cselect_b64 s_denorm_mode s_endpgm s_ff1_i32_b32
    s_ff1_i32_b64 s_flbit_i32_b32 s_getpc_b64 s_inst_prefetch s_lshl1_add_u32 s_lshl2_add_u32
    s_lshl3_add_u32 s_lshl4_add_u32 s_lshl_b32 s_lshl_b64 s_lshr_b32 s_lshr_b64 s_max_i32 s_max_u32
    s_min_i32 s_min_u32 s_mov_b32 s_mov_b64 s_movk_i32 s_mul_hi_i32 s_mul_hi_u32 s_mul_i32 s_mulk_i32
    s_nand_b32 s_nop s_nor_b32 s_not_b32 s_not_b64 s_or_b32 s_or_b64 s_or_saveexec_b32 s_orn2_b32
    s_pack_ll_b32_b16 s_round_mode s_sext_i32_i16 s_sub_i32 s_sub_u32 s_subb_u32 s_waitcnt
    s_waitcnt_depctr s_waitcnt_lgkmcnt s_waitcnt_vmcnt s_waitcnt_vscnt s_wqm_b32 s_xnor_b32 s_xor_b32
    s_xor_b64
    v_add3_u32 v_add_co_ci_u32 v_add_co_u32 v_add_f16 v_add_f32 v_add_f64 v_add_lshl_u32 v_add_nc_u16
    v_add_nc_u32 v_alignbit_b32 v_alignbyte_b32 v_and_b32 v_and_or_b32 v_ashrrev_i32 v_ashrrev_i64
    v_bfe_i32 v_bfe_u32 v_bfi_b32 v_bfm_b32 v_bfrev_b32 v_ceil_f32 v_ceil_f64 v_cndmask_b32
    v_cvt_f16_f32 v_cvt_f32_f16 v_cvt_f32_f64 v_cvt_f32_i32 v_cvt_f32_u32 v_cvt_f32_ubyte0
    v_cvt_f32_ubyte1 v_cvt_f32_ubyte2 v_cvt_f32_ubyte3 v_cvt_f64_f32 v_cvt_f64_i32 v_cvt_f64_u32
    v_cvt_i32_f32 v_cvt_i32_f64 v_cvt_pkrtz_f16_f32 v_cvt_u32_f32 v_cvt_u32_f64 v_div_fixup_f32
    v_div_fixup_f64 v_div_fmas_f32 v_div_fmas_f64 v_div_scale_f32 v_div_scale_f64 v_exp_f32 v_ffbh_u32
    v_floor_f32 v_floor_f64 v_fma_f16 v_fma_f32 v_fma_f64 v_fma_mix_f32 v_fma_mixhi_f16
    v_fma_mixlo_f16 v_fmaak_f32 v_fmac_f16 v_fmac_f32 v_fmamk_f32 v_fract_f32 v_fract_f64
    v_frexp_exp_i32_f64 v_frexp_mant_f64 v_ldexp_f32 v_ldexp_f64 v_log_f32 v_lshl_add_u32 v_lshl_or_b32
    v_lshlrev_b16 v_lshlrev_b32 v_lshlrev_b64 v_lshrrev_b16 v_lshrrev_b32 v_lshrrev_b64 v_mac_f32
    v_mad_f32 v_mad_i32_i24 v_mad_u16 v_mad_u32_u16 v_mad_u32_u24 v_mad_u64_u32 v_madak_f32 v_madmk_f32
    v_max3_f32 v_max3_u32 v_max_f16 v_max_f32 v_max_f64 v_max_i32 v_max_u32 v_mbcnt_hi_u32_b32
    v_mbcnt_lo_u32_b32 v_med3_f32 v_med3_i32 v_med3_u32 v_min3_f32 v_min3_u32 v_min_f16 v_min_f32
    v_min_f64 v_min_i32 v_min_u32 v_mov_b32 v_mul_f16 v_mul_f32 v_mul_f64 v_mul_hi_i32 v_mul_hi_u32
    v_mul_i32_i24 v_mul_lo_u16 v_mul_lo_u32 v_mul_u32_u24 v_nop v_not_b32 v_or3_b32 v_or_b32
    v_pack_b32_f16 v_perm_b32 v_permlane16_b32 v_permlanex16_b32 v_pk_add_f16 v_pk_add_u16 v_pk_fma_f16
    v_pk_lshlrev_b16 v_pk_max_f16 v_pk_min_f16 v_pk_mul_f16 v_pk_mul_lo_u16 v_rcp_f32 v_rcp_f64
    v_rcp_iflag_f32 v_readfirstlane_b32 v_readlane_b32 v_rndne_f32 v_rndne_f64 v_rsq_f32 v_rsq_f64
    v_sad_u32 v_sqrt_f32 v_sqrt_f64 v_sub_co_ci_u32 v_sub_co_u32 v_sub_f16 v_sub_f32 v_sub_nc_u16
    v_sub_nc_u32 v_subrev_co_ci_u32 v_subrev_co_u32 v_subrev_f32 v_subrev_nc_u32 v_trunc_f32 v_trunc_f64
    v_writelane_b32 v_xad_u32 v_xnor_b32 v_xor3_b32 v_xor_b32
";

/// What an assembler's text of gfx1010 code holds that the card has not: each once, with the reason.
pub fn absent(assembly: &str) -> BTreeSet<String> {
    let known: BTreeSet<&str> = INSTRUCTIONS.split_whitespace().collect();
    let mut findings = BTreeSet::new();
    for line in assembly.lines().filter(|line| line.starts_with('\t')) {
        let code = line.split("//").next().unwrap_or(line).trim();
        let name = code.split_whitespace().next().unwrap_or("");
        let endings = ["_e32", "_e64", "_sdwa", "_dpp8", "_dpp"];
        let base = endings.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        if let Some((_, why)) = ABSENT.iter().find(|(part, _)| code.contains(part)) {
            findings.insert(format!("{name}: {why}"));
        } else if !known.contains(base) && !FAMILIES.iter().any(|begin| base.starts_with(begin)) {
            findings.insert(format!("{name}: not in the list of what gfx1010 has"));
        }
    }
    findings
}
