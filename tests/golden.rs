//! The oracle against the published implementation of inducer-tuning, run in float64.
//!
//! The fixture holds, for each case, the inputs, the outputs `o` (and `extended`, what U adds to the output projection),
//! the upstream gradients `grad.o` (and `grad.extended`), and the gradients of every input by automatic differentiation.

use inducer_attention::Activation;
use inducer_attention::reference::{
    Adapter, Down, Inducer, OutputGradients, Problem, Tensor, Up, VirtualKey, VirtualValue, backward,
    extended_backward, extended_forward, forward,
};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const FIXTURE: &[u8] = include_bytes!("golden/published_implementation.safetensors");

/// f64 rounding over sums of some hundred terms; the largest error seen is 4.4e-14 (gradients of the key adapter).
const TOLERANCE: f64 = 1e-12;

/// One case: its description and its tensors, each of which must be used.
struct Case {
    description: Value,
    tensors: BTreeMap<String, Tensor>,
    used: BTreeSet<String>,
}

impl Case {
    fn load(name: &str) -> Self {
        let (_, metadata) = SafeTensors::read_metadata(FIXTURE).expect("the fixture's header");
        let descriptions = metadata.metadata().as_ref().expect("the fixture's metadata");
        let description = serde_json::from_str(&descriptions[name]).expect("the case's description");
        let file = SafeTensors::deserialize(FIXTURE).expect("the fixture");
        let mut tensors = BTreeMap::new();
        for (key, view) in file.tensors() {
            if let Some((case, tensor)) = key.split_once('/')
                && case == name
            {
                assert_eq!(view.dtype(), Dtype::F64);
                let (bytes, []) = view.data().as_chunks::<8>() else { panic!("whole f64 elements") };
                let data = bytes.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
                tensors.insert(tensor.to_owned(), Tensor::new(view.shape(), data));
            }
        }
        Self { description, tensors, used: BTreeSet::new() }
    }

    fn take(&mut self, name: &str) -> Tensor {
        self.used.insert(name.to_owned());
        self.tensors.get(name).unwrap_or_else(|| panic!("the fixture has no {name}")).clone()
    }

    fn down(&mut self, part: &str) -> Down {
        Down {
            weight: self.take(&format!("{part}.down_weight")),
            bias: self.take(&format!("{part}.down_bias")),
            activation: Activation::Tanh,
        }
    }

    fn adapter(&mut self, part: &str) -> Adapter {
        let up = Up {
            weight: self.take(&format!("{part}.up_weight")),
            bias: self.take(&format!("{part}.up_bias")),
        };
        Adapter { down: self.down(part), up }
    }

    fn problem(&mut self) -> Problem {
        let mut problem = Problem::new(self.take("q"), self.take("k"), self.take("v"));
        let description = self.description.clone();
        problem.causal = description["causal"].as_bool().expect("causal");
        problem.key_lengths = match &description["key_lengths"] {
            Value::Null => None,
            lengths => Some(serde_json::from_value(lengths.clone()).expect("key_lengths")),
        };
        problem.inducer = Some(Inducer {
            key: match description["inducer_key"].as_str() {
                Some("query") => VirtualKey::Query,
                Some("residual") => VirtualKey::Residual(self.adapter("key")),
                other => panic!("virtual key {other:?}"),
            },
            value: match description["value"].as_str() {
                Some("residual") => VirtualValue::Residual(self.adapter("value")),
                Some("direct") => VirtualValue::Direct(self.adapter("value")),
                Some("extended") => VirtualValue::Extended(self.down("value")),
                other => panic!("virtual value {other:?}"),
            },
            adaptive_length: description["adaptive_length"].as_bool().expect("adaptive_length"),
            positions: None,
        });
        problem
    }

    fn assert_agrees(&mut self, name: &str, actual: &Tensor) {
        let expected = self.take(name);
        let error = actual.relative_error(&expected);
        println!("{name}: {error:.1e}");
        assert!(error <= TOLERANCE, "{name}: relative error {error:e}");
    }
}

fn check(name: &str) {
    let mut case = Case::load(name);
    let problem = case.problem();
    let output = forward(&problem);
    case.assert_agrees("o", &output.o);

    let mut upstream = OutputGradients { o: case.take("grad.o"), lse: None, u: None };
    if let Some(u) = &output.u {
        let (weight, bias) = (case.take("value.up_weight"), case.take("value.up_bias"));
        case.assert_agrees("extended", &extended_forward(u, &weight, &bias));
        let gradients = extended_backward(u, &weight, &case.take("grad.extended"));
        case.assert_agrees("grad.value.up_weight", &gradients.up_weight);
        case.assert_agrees("grad.value.up_bias", &gradients.up_bias);
        upstream.u = Some(gradients.u);
    }
    for (name, gradient) in backward(&problem, &upstream).named() {
        case.assert_agrees(&format!("grad.{name}"), gradient);
    }
    let unused: Vec<_> = case.tensors.keys().filter(|name| !case.used.contains(*name)).collect();
    assert!(unused.is_empty(), "the fixture's {unused:?} were not compared");
}

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { check(stringify!($name)); })*

        #[test]
        fn every_case_of_the_fixture_has_a_test() {
            let (_, metadata) = SafeTensors::read_metadata(FIXTURE).expect("the fixture's header");
            let cases: BTreeSet<&str> =
                metadata.metadata().as_ref().expect("metadata").keys().map(String::as_str).collect();
            assert_eq!(cases, BTreeSet::from([$(stringify!($name)),*]));
        }
    };
}

cases!(
    adaptive_length_d64,
    causal_d64,
    direct_value_ablation_d64,
    extended_d64,
    kv_cache_causal_d64,
    padded_noncausal_d64,
    query_key_d64,
);
