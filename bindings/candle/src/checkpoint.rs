//! Adapters as safetensors files.
//!
//! A file holds the trained tensors of a model's layers, each under its layer's prefix (`layers.0.key.down_weight`), and in
//! its metadata `format`, `version` and `config`, the layers' configurations as JSON.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::safetensors::Load;
use candle_core::{Device, Var};
use safetensors::SafeTensors;

use crate::config::InducerAttentionConfig;
use crate::module::InducerAttention;

const FORMAT: &str = "inducer-attention";
const VERSION: &str = "1";

/// Why an adapter cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Not a safetensors file, or a damaged one.
    #[error("not a safetensors file: {0}")]
    SafeTensors(#[from] safetensors::SafeTensorError),
    /// A safetensors file that this crate did not write.
    #[error("metadata: {key} is {got:?}, expected {expected:?}; this is no adapter")]
    Format {
        /// The metadata's key.
        key: &'static str,
        /// Its value.
        got: Option<String>,
        /// What it must be.
        expected: &'static str,
    },
    /// An adapter of a version that this crate does not know.
    #[error("adapter version {got:?}, this crate knows {expected:?}")]
    Version {
        /// The file's version.
        got: Option<String>,
        /// The version that this crate reads.
        expected: &'static str,
    },
    /// The configuration in the metadata cannot be read.
    #[error("metadata: config: {0}")]
    Config(#[from] serde_json::Error),
    /// The configuration of a layer contradicts itself.
    #[error("{layer}: {source}")]
    LayerConfig {
        /// The layer's prefix.
        layer: String,
        /// The mistake.
        source: inducer_attention::Error,
    },
    /// A layer was given twice.
    #[error("layer {0:?} is given twice")]
    DuplicateLayer(String),
    /// A tensor that the configuration requires is not in the file.
    #[error("tensor {name:?} is missing, expected shape {expected:?}")]
    MissingTensor {
        /// Its full name.
        name: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// A tensor has another shape than the configuration says.
    #[error("tensor {name:?} has shape {got:?}, expected {expected:?}")]
    Shape {
        /// Its full name.
        name: String,
        /// The shape in the file.
        got: Vec<usize>,
        /// The shape that the configuration says.
        expected: Vec<usize>,
    },
    /// A tensor is not of a floating-point type that attention takes.
    #[error("tensor {name:?} has dtype {got}, expected F32, F16 or BF16")]
    DType {
        /// Its full name.
        name: String,
        /// Its type in the file.
        got: String,
    },
    /// The file holds a tensor that no layer has.
    #[error("tensor {name:?} belongs to no layer of the configuration")]
    UnexpectedTensor {
        /// Its full name.
        name: String,
    },
    /// candle could not make the tensors.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

impl From<CheckpointError> for candle_core::Error {
    fn from(error: CheckpointError) -> Self {
        match error {
            CheckpointError::Candle(error) => error,
            other => Self::wrap(other).context("adapter checkpoint"),
        }
    }
}

/// Writes the adapters of a model's layers, each under its prefix (for instance `layers.0`; an empty one adds nothing to the
/// names). The file is written beside its place and then renamed, so that an interruption leaves the old one.
///
/// # Errors
/// [`CheckpointError::Io`], [`CheckpointError::DuplicateLayer`].
pub fn save_adapter<'m, S: AsRef<str>>(
    path: impl AsRef<Path>,
    layers: impl IntoIterator<Item = (S, &'m InducerAttention)>,
) -> Result<(), CheckpointError> {
    let path = path.as_ref();
    let mut configs: BTreeMap<String, InducerAttentionConfig> = BTreeMap::new();
    let mut tensors = Vec::new();
    for (prefix, layer) in layers {
        let prefix = prefix.as_ref();
        if configs.insert(prefix.to_owned(), *layer.config()).is_some() {
            return Err(CheckpointError::DuplicateLayer(prefix.to_owned()));
        }
        tensors.extend(layer.named_tensors().map(|(name, tensor)| (full_name(prefix, name), tensor)));
    }
    let metadata = HashMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("version".to_owned(), VERSION.to_owned()),
        ("config".to_owned(), serde_json::to_string(&configs)?),
    ]);
    let bytes = safetensors::serialize(tensors, Some(metadata))?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|source| CheckpointError::Io { path: path.to_owned(), source })
}

/// Reads what [`save_adapter`] wrote: the layers by their prefixes, their tensors as variables of the dtypes in the file, so
/// that tuning can go on.
///
/// # Errors
/// Any [`CheckpointError`]: whatever the file holds, a broken one is an error.
pub fn load_adapter(
    path: impl AsRef<Path>,
    device: &Device,
) -> Result<BTreeMap<String, InducerAttention>, CheckpointError> {
    let path = path.as_ref();
    let bytes =
        std::fs::read(path).map_err(|source| CheckpointError::Io { path: path.to_owned(), source })?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let entry = |key: &str| metadata.get(key).cloned();
    if entry("format").as_deref() != Some(FORMAT) {
        return Err(CheckpointError::Format { key: "format", got: entry("format"), expected: FORMAT });
    }
    if entry("version").as_deref() != Some(VERSION) {
        return Err(CheckpointError::Version { got: entry("version"), expected: VERSION });
    }
    let configs: BTreeMap<String, InducerAttentionConfig> =
        serde_json::from_str(&entry("config").unwrap_or_default())?;
    let file = SafeTensors::deserialize(&bytes)?;

    let mut expected = HashMap::new();
    for (prefix, config) in &configs {
        config.validate().map_err(|source| CheckpointError::LayerConfig { layer: prefix.clone(), source })?;
        expected.extend(config.parameters().into_iter().map(|p| (full_name(prefix, p.name), p.shape)));
    }
    if let Some((name, _)) = file.iter().find(|(name, _)| !expected.contains_key(*name)) {
        return Err(CheckpointError::UnexpectedTensor { name: name.to_owned() });
    }
    let mut variables = HashMap::new();
    for (name, shape) in expected {
        let Ok(view) = file.tensor(&name) else {
            return Err(CheckpointError::MissingTensor { name, expected: shape });
        };
        if view.shape() != shape {
            return Err(CheckpointError::Shape { name, got: view.shape().to_vec(), expected: shape });
        }
        if !matches!(
            view.dtype(),
            safetensors::Dtype::F32 | safetensors::Dtype::F16 | safetensors::Dtype::BF16
        ) {
            return Err(CheckpointError::DType { name, got: format!("{:?}", view.dtype()) });
        }
        let variable = Var::from_tensor(&view.load(device)?)?;
        variables.insert(name, variable);
    }
    let mut layers = BTreeMap::new();
    for (prefix, config) in configs {
        let layer = InducerAttention::assemble(config, |parameter| {
            match variables.get(&full_name(&prefix, parameter.name)) {
                Some(variable) => Ok(variable.as_tensor().clone()),
                None => candle_core::bail!("{} is missing", full_name(&prefix, parameter.name)),
            }
        })?;
        layers.insert(prefix, layer);
    }
    Ok(layers)
}

fn full_name(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}
