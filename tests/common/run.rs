//! Runs a case on a backend, into memory where a write outside the views shows.

use super::backend::Backend;
use super::case::{AdapterSlots, Case, Inputs, order};
use super::storage::{Arena, Exclusive, Placing, Slot};
use inducer_attention::reference::Tensor;
use inducer_attention::{
    AdapterGradients, DType, DownProjectionGradients, Gradients, KeyGradients, Outputs, PrefixGradients,
    Problem, Saved, SavedOutput, TensorMut, Upstream, ValueGradients, VirtualKey, VirtualValue,
};

/// Memory for the forward's results.
#[derive(Clone)]
pub struct Forwarded {
    pub arena: Arena,
    pub o: Slot,
    pub lse: Slot,
    pub u: Option<Slot>,
    pub attn: Option<Slot>,
}

impl Forwarded {
    pub fn new(case: &Case) -> Self {
        let (b, h, n, d) = (case.batch, case.query_heads(), case.rows, case.head_dim);
        let mut arena = Arena::default();
        let (o, u) = case.place_o_and_u(&mut arena, case.result_layout);
        // lse may have any strides: here rows before heads, not contiguous.
        let placing = Placing { gap: case.row_pad % 2, ..case.placing() };
        let lse = arena.add(DType::F32, &[b, h, n], &order(case.result_layout)[..3], &[], placing);
        let attn = case
            .saves_attention
            .then(|| arena.add(case.dtype, &[b, h, n, d], order(case.result_layout), &[], case.placing()));
        let mut results = Self { arena, o, lse, u, attn };
        for slot in results.slots() {
            results.arena.fill_unwritten(&slot);
        }
        results
    }

    pub fn slots(&self) -> Vec<Slot> {
        [Some(&self.o), Some(&self.lse), self.u.as_ref(), self.attn.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    pub fn outputs(&mut self) -> Outputs<'_> {
        let memory = self.arena.exclusive();
        Outputs {
            o: memory.view(&self.o),
            lse: Some(memory.view(&self.lse)),
            u: self.u.as_ref().map(|slot| memory.view(slot)),
            attn: self.attn.as_ref().map(|slot| memory.view(slot)),
        }
    }

    /// Results by the oracle's names.
    pub fn named(&self) -> Vec<(&'static str, Tensor)> {
        let mut named = vec![("o", self.arena.read(&self.o)), ("lse", self.arena.read(&self.lse))];
        if let Some(u) = &self.u {
            named.push(("u", self.arena.read(u)));
        }
        if let Some(attn) = &self.attn {
            named.push(("attn", self.arena.read(attn)));
        }
        named
    }

    pub fn saved(&self) -> Saved<'_> {
        Saved {
            output: match &self.attn {
                Some(attn) => SavedOutput::Attention(self.arena.view(attn)),
                None => SavedOutput::Output(self.arena.view(&self.o)),
            },
            lse: self.arena.view(&self.lse),
        }
    }

    /// Says what was written that should not have been.
    pub fn trespass(&self) -> Option<String> {
        self.arena.trespass(&self.slots().iter().collect::<Vec<_>>())
    }
}

/// Memory for the backward's results.
#[derive(Clone)]
pub struct Backwarded {
    pub arena: Arena,
    /// By the oracle's names.
    pub slots: Vec<(&'static str, Slot)>,
}

impl Backwarded {
    pub fn new(inputs: &Inputs) -> Self {
        let case = &inputs.case;
        let mut arena = Arena::default();
        let [q, k, v] = case.place_qkv(&mut arena, case.result_layout, false);
        let mut slots = vec![("q", q), ("k", k), ("v", v)];
        // Gradients of parameters may have any strides.
        let mut add = |name, like: &Slot| {
            let mut order: Vec<usize> = (0..like.shape.len()).collect();
            if case.offset % 2 == 1 {
                order.reverse();
            }
            let placing = Placing { gap: case.row_pad % 2, ..case.placing() };
            slots.push((name, arena.add(DType::F32, &like.shape, &order, &[], placing)));
        };
        if case.parameter_gradients {
            if let Some((k, v)) = &inputs.prefix {
                add("prefix.k", k);
                add("prefix.v", v);
            }
            let mut adapter = |names: [&'static str; 4], t: &AdapterSlots| {
                add(names[0], &t.down_weight);
                add(names[1], &t.down_bias);
                if let Some((weight, bias)) = &t.up {
                    add(names[2], weight);
                    add(names[3], bias);
                }
            };
            if let Some(t) = &inputs.key {
                adapter(["key.down_weight", "key.down_bias", "key.up_weight", "key.up_bias"], t);
            }
            if let Some(t) = &inputs.value {
                let names = ["value.down_weight", "value.down_bias", "value.up_weight", "value.up_bias"];
                adapter(names, t);
            }
            if let Some(t) = &inputs.logit {
                add("logit", t);
            }
        }
        for (_, slot) in &slots {
            arena.fill_unwritten(slot);
        }
        Self { arena, slots }
    }

    fn slot(&self, name: &str) -> Option<&Slot> {
        self.slots.iter().find(|(n, _)| *n == name).map(|(_, slot)| slot)
    }

    pub fn gradients<'g>(&'g mut self, problem: &Problem<'_>) -> Gradients<'g> {
        fn view<'g, const R: usize>(memory: &Exclusive<'g>, slot: Option<&Slot>) -> TensorMut<'g, R> {
            memory.view(slot.expect("a place for every gradient of the problem"))
        }
        // The addresses are all taken before the first view is made.
        let slots = self.slots.clone();
        let slot = |name: &str| slots.iter().find(|(n, _)| *n == name).map(|(_, slot)| slot);
        let memory = self.arena.exclusive();
        let mut all =
            Gradients::new(view(&memory, slot("q")), view(&memory, slot("k")), view(&memory, slot("v")));
        all.prefix = slot("prefix.k")
            .map(|k| PrefixGradients { k: memory.view(k), v: view(&memory, slot("prefix.v")) });
        let adapter = |names: [&str; 4]| AdapterGradients {
            down_weight: view(&memory, slot(names[0])),
            down_bias: view(&memory, slot(names[1])),
            up_weight: view(&memory, slot(names[2])),
            up_bias: view(&memory, slot(names[3])),
        };
        let inducer = problem.attention().inducer;
        if let Some(logit) = slot("logit") {
            all.key = match inducer.map(|i| i.key) {
                Some(VirtualKey::LogitPerHead(_)) => KeyGradients::LogitPerHead(memory.view(logit)),
                _ => KeyGradients::LogitPerToken(memory.view(logit)),
            };
        }
        if slot("key.down_weight").is_some() {
            all.key = KeyGradients::Residual(adapter([
                "key.down_weight",
                "key.down_bias",
                "key.up_weight",
                "key.up_bias",
            ]));
        }
        if slot("value.down_weight").is_some() {
            all.value = match inducer.map(|i| i.value) {
                Some(VirtualValue::Extended(_)) => ValueGradients::Extended(DownProjectionGradients {
                    down_weight: view(&memory, slot("value.down_weight")),
                    down_bias: view(&memory, slot("value.down_bias")),
                }),
                _ => ValueGradients::Adapter(adapter([
                    "value.down_weight",
                    "value.down_bias",
                    "value.up_weight",
                    "value.up_bias",
                ])),
            };
        }
        all
    }

    /// Results by the oracle's names.
    pub fn named(&self) -> Vec<(&'static str, Tensor)> {
        self.slots.iter().map(|(name, slot)| (*name, self.arena.read(slot))).collect()
    }

    pub fn get(&self, name: &str) -> Tensor {
        self.arena.read(self.slot(name).unwrap_or_else(|| panic!("no gradient of {name}")))
    }

    /// Says what was written that should not have been.
    pub fn trespass(&self) -> Option<String> {
        self.arena.trespass(&self.slots.iter().map(|(_, slot)| slot).collect::<Vec<_>>())
    }
}

/// The upstream gradients of a case.
pub fn upstream(inputs: &Inputs) -> Upstream<'_> {
    Upstream {
        d_o: inputs.arena.view(&inputs.d_o),
        d_lse: inputs.case.lse_gradient.then(|| inputs.arena.view(&inputs.d_lse)),
        d_u: inputs.d_u.as_ref().filter(|_| inputs.case.u_gradient).map(|slot| inputs.arena.view(slot)),
    }
}

/// Runs the forward.
///
/// # Errors
/// What went wrong, in words: an error, or a write outside of the results.
pub fn forward(backend: &dyn Backend, inputs: &Inputs) -> Result<Forwarded, String> {
    let mut results = Forwarded::new(&inputs.case);
    let before = inputs.arena.clone();
    let problem = inputs.attention().validate().map_err(|e| format!("validation: {e}"))?;
    backend.forward(&problem, results.outputs()).map_err(|e| format!("{}, forward: {e}", backend.name()))?;
    check(&before, inputs, results.trespass()).map_err(|e| format!("{}, forward: {e}", backend.name()))?;
    Ok(results)
}

/// Runs the backward after [`forward`].
///
/// # Errors
/// As [`forward`].
pub fn backward(backend: &dyn Backend, inputs: &Inputs, forward: &Forwarded) -> Result<Backwarded, String> {
    let mut results = Backwarded::new(inputs);
    let before = inputs.arena.clone();
    let problem = inputs.attention().validate().map_err(|e| format!("validation: {e}"))?;
    backend
        .backward(&problem, forward.saved(), upstream(inputs), results.gradients(&problem))
        .map_err(|e| format!("{}, backward: {e}", backend.name()))?;
    check(&before, inputs, results.trespass()).map_err(|e| format!("{}, backward: {e}", backend.name()))?;
    Ok(results)
}

fn check(before: &Arena, inputs: &Inputs, trespass: Option<String>) -> Result<(), String> {
    if !inputs.arena.same_bits(before) {
        return Err("an input was written to".into());
    }
    trespass.map_or(Ok(()), |what| Err(format!("wrote {what}")))
}
