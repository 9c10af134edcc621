//! The header and the library as C sees them: structs lie as Rust's do, and a program compiled against both works.

#![cfg(unix)]

use std::env;
use std::fmt::Write;
use std::fs;
use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use inducer_attention_c::call::{AdapterTensors, AttentionCall, GradientTensors, OutputTensors};
use inducer_attention_c::tensor::{DLDataType, DLDevice, DLTensor};

/// A folder for this process alone, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

/// Compiles a program against the header and the shared library beside this test, runs it and returns what it prints.
fn run(source: &Path, folder: &Path, linked: bool) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut build = cc::Build::new();
    let target = env!("TEST_TARGET");
    build.opt_level(1).host(target).target(target).cargo_metadata(false).out_dir(folder);
    let program = folder.join("program");
    let libraries = env::current_exe().expect("this test").parent().expect("its folder").to_owned();
    let mut compile = build.get_compiler().to_command();
    compile.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"]).arg(root.join("include"));
    compile.arg(source).arg("-o").arg(&program);
    if linked {
        compile.arg("-L").arg(&libraries).args(["-linducer_attention_c", "-lm"]);
        compile.arg(format!("-Wl,-rpath,{}", libraries.display()));
    }
    let output = compile.output().expect("a C compiler: install gcc or clang");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Cargo's own names a folder first where an earlier build may lie.
    let mut command = Command::new(&program);
    command.env_remove("LD_LIBRARY_PATH").env_remove("DYLD_FALLBACK_LIBRARY_PATH");
    let output = command.output().expect("the compiled program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

macro_rules! layout {
    ($($name:literal $rust:ty { $($field:ident)* })*) => {{
        let (mut fields, mut expected) = (String::new(), String::new());
        $(
            $(
                writeln!(fields, "FIELD({}, {});", $name, stringify!($field)).unwrap();
                writeln!(expected, "{}.{} {}", $name, stringify!($field), offset_of!($rust, $field)).unwrap();
            )*
            writeln!(fields, "SIZE({});", $name).unwrap();
            writeln!(expected, "{} {}", $name, size_of::<$rust>()).unwrap();
        )*
        (fields, expected)
    }};
}

#[test]
fn structs_lie_as_in_c() {
    let (fields, expected) = layout! {
        "DLDevice" DLDevice { device_type device_id }
        "DLDataType" DLDataType { code bits lanes }
        "DLTensor" DLTensor { data device ndim dtype shape strides byte_offset }
        "ia_adapter" AdapterTensors { down_weight down_bias up_weight up_bias }
        "ia_attention" AttentionCall {
            struct_size q k v prefix_k prefix_v query_lengths key_lengths key_starts cu_seqlens_q cu_seqlens_k
            alibi_slopes options softmax_scale window_left window_right softcap dropout_p dropout_seed key value
            key_activation value_activation key_adapter value_adapter logit positions max_seqlen_q max_seqlen_k
        }
        "ia_outputs" OutputTensors { struct_size o lse u attn }
        "ia_gradients" GradientTensors {
            struct_size o attn lse d_o d_lse d_u d_q d_k d_v d_prefix_k d_prefix_v d_key_adapter d_value_adapter
            d_logit
        }
    };
    // Numbers of the header, as call.rs has them.
    let constants = [
        ("IA_OK", 0),
        ("IA_INVALID", 1),
        ("IA_INTERNAL", 2),
        ("IA_DEVICE", 3),
        ("IA_ABI_VERSION", 2),
        ("IA_CAUSAL", 1),
        ("IA_SOFTMAX_SCALE", 2),
        ("IA_WINDOW_LEFT", 4),
        ("IA_WINDOW_RIGHT", 8),
        ("IA_SOFTCAP", 16),
        ("IA_DROPOUT", 32),
        ("IA_ADAPTIVE_LENGTH", 64),
        ("IA_ALL_OPTIONS", 127),
        ("IA_KEY_NONE", 0),
        ("IA_KEY_QUERY", 1),
        ("IA_KEY_RESIDUAL", 2),
        ("IA_KEY_LOGIT_PER_HEAD", 3),
        ("IA_KEY_LOGIT_PER_TOKEN", 4),
        ("IA_VALUE_ZERO", 0),
        ("IA_VALUE_RESIDUAL", 1),
        ("IA_VALUE_DIRECT", 2),
        ("IA_VALUE_EXTENDED", 3),
        ("IA_TANH", 0),
        ("IA_IDENTITY", 1),
    ];
    let (mut fields, mut expected) = (fields, expected);
    for (name, number) in constants {
        writeln!(fields, "NUMBER({name});").unwrap();
        writeln!(expected, "{name} {number}").unwrap();
    }
    let folder = Folder::new("layout");
    let source = folder.0.join("layout.c");
    let program = format!(
        "#include \"inducer_attention.h\"\n#include <stdio.h>\n\
         #define FIELD(type, name) printf(#type \".\" #name \" %zu\\n\", offsetof(type, name))\n\
         #define NUMBER(name) printf(#name \" %d\\n\", (int)name)\n\
         #define SIZE(type) printf(#type \" %zu\\n\", sizeof(type))\n\
         int main(void) {{\n{fields}return 0;\n}}\n"
    );
    fs::write(&source, program).expect("the program's source");
    assert_eq!(run(&source, &folder.0, false), expected);
}

#[test]
fn a_program_in_c_computes_and_hears_of_its_mistakes() {
    let folder = Folder::new("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program.c");
    assert_eq!(run(&source, &folder.0, true), "all right\n");
}
