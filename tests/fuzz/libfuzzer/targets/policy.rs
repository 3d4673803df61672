//! libFuzzer's driver of `karst_fuzz::policy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| karst_fuzz::policy::run(data));
