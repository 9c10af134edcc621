//! Adapter files.

use std::collections::HashMap;
use std::path::PathBuf;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use inducer_attention_candle::{
    AttentionOptions, CheckpointError, InducerAttention, InducerAttentionConfig, load_adapter, save_adapter,
};

use crate::module::{everything, extended, fresh, shake};
use crate::support::{tensor, to_vec};

/// A file that goes away with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("{}-{name}.safetensors", std::process::id())))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // It may never have been written.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn shaken(config: InducerAttentionConfig) -> InducerAttention {
    let (_, module) = fresh(config);
    shake(&module);
    module
}

#[test]
fn layers_come_back_as_they_were() -> Result<()> {
    let file = File::new("round-trip");
    let (first, second) = (shaken(everything()), shaken(extended(true, 30)));
    save_adapter(&file.0, [("layers.0", &first), ("layers.1", &second)])?;
    let loaded = load_adapter(&file.0, &Device::Cpu)?;
    assert_eq!(loaded.keys().map(String::as_str).collect::<Vec<_>>(), ["layers.0", "layers.1"]);
    for (name, saved) in [("layers.0", &first), ("layers.1", &second)] {
        let loaded = &loaded[name];
        assert_eq!(loaded.config(), saved.config());
        for ((name, a), (other, b)) in loaded.named_tensors().zip(saved.named_tensors()) {
            assert_eq!((name, to_vec(a)), (other, to_vec(b)));
            assert!(a.is_variable(), "{name}");
        }
    }
    let (q, kv) = (tensor(1, &[1, 4, 9, 12]), tensor(2, &[1, 2, 9, 12]));
    let options = AttentionOptions::causal();
    assert_eq!(
        to_vec(&loaded["layers.0"].forward(&q, &kv, &kv, &options)?),
        to_vec(&first.forward(&q, &kv, &kv, &options)?)
    );
    Ok(())
}

#[test]
fn a_variable_builder_reads_the_file() -> Result<()> {
    let file = File::new("var-builder");
    let module = shaken(everything());
    save_adapter(&file.0, [("layers.3", &module)])?;
    let vb = VarBuilder::from_buffered_safetensors(std::fs::read(&file.0)?, DType::F32, &Device::Cpu)?;
    let again = InducerAttention::new(everything(), vb.pp("layers.3"))?;
    for ((name, a), (_, b)) in again.named_tensors().zip(module.named_tensors()) {
        assert_eq!(to_vec(a), to_vec(b), "{name}");
    }
    assert!(InducerAttention::new(everything().with_inducer(4), vb.pp("layers.3")).is_err());
    assert!(InducerAttention::new(everything(), vb.pp("layers.4")).is_err());
    Ok(())
}

/// Loads what these tensors and metadata make.
fn load(
    name: &str,
    tensors: &HashMap<String, Tensor>,
    metadata: &[(&str, &str)],
) -> std::result::Result<(), CheckpointError> {
    let file = File::new(name);
    let metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    safetensors::serialize_to_file(tensors, Some(metadata), &file.0).unwrap();
    load_adapter(&file.0, &Device::Cpu).map(|_| ())
}

#[test]
fn broken_files_are_told_apart() {
    let config = InducerAttentionConfig::new(4, 12).with_prefix(3);
    let module = shaken(config);
    let json = serde_json::to_string(&HashMap::from([("a", config)])).unwrap();
    let good = [("format", "inducer-attention"), ("version", "1"), ("config", &*json)];
    let tensors: HashMap<String, Tensor> =
        module.named_tensors().map(|(name, t)| (format!("a.{name}"), t.clone())).collect();
    load("good", &tensors, &good).unwrap();

    let changed = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        tensors
    };
    let missing = changed(&|t| drop(t.remove("a.prefix.v")));
    assert!(matches!(
        load("missing", &missing, &good),
        Err(CheckpointError::MissingTensor { name, expected }) if name == "a.prefix.v" && expected == [4, 3, 12]
    ));
    let wrong = changed(&|t| drop(t.insert("a.prefix.v".into(), tensor(1, &[4, 3, 11]))));
    assert!(matches!(
        load("shape", &wrong, &good),
        Err(CheckpointError::Shape { name, got, .. }) if name == "a.prefix.v" && got == [4, 3, 11]
    ));
    let extra = changed(&|t| drop(t.insert("b.prefix.v".into(), tensor(1, &[1]))));
    assert!(matches!(
        load("extra", &extra, &good),
        Err(CheckpointError::UnexpectedTensor { name }) if name == "b.prefix.v"
    ));
    let whole = changed(&|t| {
        let values = t["a.prefix.v"].to_dtype(DType::U32).unwrap();
        t.insert("a.prefix.v".into(), values);
    });
    assert!(matches!(load("dtype", &whole, &good), Err(CheckpointError::DType { .. })));

    let with = |key: &str, value: &str| {
        let metadata = good.map(|(k, v)| if k == key { (k, value.to_owned()) } else { (k, v.to_owned()) });
        let metadata = metadata.each_ref().map(|(k, v)| (*k, v.as_str()));
        load(&format!("metadata-{key}-{}", value.len()), &tensors, &metadata)
    };
    assert!(matches!(
        with("version", "2"),
        Err(CheckpointError::Version { got: Some(got), expected: "1" }) if got == "2"
    ));
    assert!(matches!(with("format", "pt"), Err(CheckpointError::Format { key: "format", .. })));
    assert!(matches!(with("config", "{"), Err(CheckpointError::Config(_))));
    assert!(matches!(with("config", r#"{"a":{"heads":4}}"#), Err(CheckpointError::Config(_))));
    let zero = json.replace("\"num_heads\":4", "\"num_heads\":0");
    assert!(matches!(
        with("config", &zero),
        Err(CheckpointError::LayerConfig { layer, .. }) if layer == "a"
    ));
    assert!(matches!(load("none", &tensors, &[]), Err(CheckpointError::Format { got: None, .. })));

    let file = File::new("no-safetensors");
    std::fs::write(&file.0, b"hello").unwrap();
    assert!(matches!(load_adapter(&file.0, &Device::Cpu), Err(CheckpointError::SafeTensors(_))));
    assert!(matches!(
        load_adapter(file.0.with_extension("absent"), &Device::Cpu),
        Err(CheckpointError::Io { .. })
    ));
    assert!(matches!(
        save_adapter(&file.0, [("a", &module), ("a", &module)]),
        Err(CheckpointError::DuplicateLayer(name)) if name == "a"
    ));
    let error = candle_core::Error::from(load("again", &missing, &good).unwrap_err());
    assert!(error.to_string().contains("a.prefix.v"), "{error}");
}
