//! Calls: a problem together with the memory that its results go to.
//!
//! [`Problem::forward`] and [`Problem::backward`] check the output memory and return a call that a backend executes.

use crate::attention::{Problem, contiguous_last, expect_dtype, expect_memory, expect_shape};
use crate::error::{Error, Result};
use crate::inducer::{
    AdapterGradients, KeyGradients, PrefixGradients, ValueGradients, VirtualKey, VirtualValue,
};
use crate::tensor::{DType, Layout, Memory, TensorMut, TensorRef};

/// Where the forward's results go. They are overwritten; rows outside all sequences become 0 (lse −∞).
///
/// The last dimension of O, U and attn is contiguous, and no two outputs share an element with each other or with an input.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// O, `[B, Hq, N, d]`, of Q's dtype; for the extended value that is attn.
    pub o: TensorMut<'a, 4>,
    /// Logarithm of the sum of exponentials of the scores of real keys and prefix, natural, undropped, f32 `[B, Hq, N]`; the
    /// backward needs it.
    pub lse: Option<TensorMut<'a, 3>>,
    /// U, `[B, Hq, N, r_v]`, of Q's dtype; for the extended value, and only for it.
    pub u: Option<TensorMut<'a, 4>>,
    /// attn, the attention without the virtual token, `[B, Hq, N, d]`, of Q's dtype. In 16 bits the backward is more accurate
    /// from it than from O where |λΔ| is many times |attn|: see [`Saved`].
    pub attn: Option<TensorMut<'a, 4>>,
}

impl<'a> Outputs<'a> {
    /// O alone.
    pub fn new(o: TensorMut<'a, 4>) -> Self {
        Self { o, lse: None, u: None, attn: None }
    }

    /// O and lse: what training needs.
    pub fn with_lse(o: TensorMut<'a, 4>, lse: TensorMut<'a, 3>) -> Self {
        Self { lse: Some(lse), ..Self::new(o) }
    }
}

/// A forward call that cannot fail on shapes; [`Problem::forward`] makes one, a backend such as
/// [`cpu::Engine`](crate::cpu::Engine::forward) runs it.
#[derive(Debug)]
pub struct Forward<'p, 'a, 'o> {
    pub(crate) problem: &'p Problem<'a>,
    pub(crate) outputs: Outputs<'o>,
}

#[cfg(feature = "cuda")]
impl Forward<'_, '_, '_> {
    /// Every output with its name.
    pub(crate) fn for_each_output(&self, f: &mut dyn FnMut(&'static str, Layout<'_>)) {
        let Outputs { o, lse, u, attn } = &self.outputs;
        f("o", o.layout());
        for (name, t) in [("u", u), ("attn", attn)] {
            if let Some(t) = t {
                f(name, t.layout());
            }
        }
        if let Some(lse) = lse {
            f("lse", lse.layout());
        }
    }
}

/// What the backward keeps of the forward.
#[derive(Clone, Copy, Debug)]
pub enum SavedOutput<'a> {
    /// O, `[B, Hq, N, d]`.
    Output(TensorRef<'a, 4>),
    /// attn, `[B, Hq, N, d]`: see [`Outputs::attn`].
    Attention(TensorRef<'a, 4>),
}

/// Results of the forward that the backward needs.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// O or attn, of Q's dtype. The row constant D′ is formed from `dO·O`; with O rounded to 16 bits it loses digits where
    /// |λΔ| is many times |attn|, and saving attn avoids that.
    pub output: SavedOutput<'a>,
    /// lse, f32 `[B, Hq, N]`.
    pub lse: TensorRef<'a, 3>,
}

/// Gradients of the loss with respect to the forward's results.
#[derive(Clone, Copy, Debug)]
pub struct Upstream<'a> {
    /// dO, `[B, Hq, N, d]`, of Q's dtype.
    pub d_o: TensorRef<'a, 4>,
    /// dLSE, f32 `[B, Hq, N]`; 0 if none. Ignored in rows that see nothing.
    pub d_lse: Option<TensorRef<'a, 3>>,
    /// dU, `[B, Hq, N, r_v]`, of Q's dtype; 0 if none. Only for the extended value.
    pub d_u: Option<TensorRef<'a, 4>>,
}

impl<'a> Upstream<'a> {
    /// A gradient of O alone.
    pub fn new(d_o: TensorRef<'a, 4>) -> Self {
        Self { d_o, d_lse: None, d_u: None }
    }
}

/// Where the backward's results go. They are overwritten, not added to; rows and keys that take no part become 0.
///
/// The last dimension of dQ, dK and dV is contiguous, and no two gradients share an element with each other or with an input.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// dQ, `[B, Hq, N, d]`, of Q's dtype.
    pub d_q: TensorMut<'a, 4>,
    /// dK, `[B, Hkv, M, d]`, of Q's dtype.
    pub d_k: TensorMut<'a, 4>,
    /// dV, `[B, Hkv, M, d]`, of Q's dtype.
    pub d_v: TensorMut<'a, 4>,
    /// Of the shared prefix, f32, if wanted.
    pub prefix: Option<PrefixGradients<'a>>,
    /// Of the virtual key's parameters, f32, if wanted.
    pub key: KeyGradients<'a>,
    /// Of the virtual value's parameters, f32, if wanted.
    pub value: ValueGradients<'a>,
}

impl<'a> Gradients<'a> {
    /// dQ, dK and dV alone.
    pub fn new(d_q: TensorMut<'a, 4>, d_k: TensorMut<'a, 4>, d_v: TensorMut<'a, 4>) -> Self {
        Self { d_q, d_k, d_v, prefix: None, key: KeyGradients::None, value: ValueGradients::None }
    }
}

/// A backward call that cannot fail on shapes; [`Problem::backward`] makes one, a backend such as
/// [`cpu::Engine`](crate::cpu::Engine::backward) runs it.
#[derive(Debug)]
pub struct Backward<'p, 'a, 'o> {
    pub(crate) problem: &'p Problem<'a>,
    pub(crate) saved: Saved<'a>,
    pub(crate) upstream: Upstream<'a>,
    pub(crate) gradients: Gradients<'o>,
}

#[cfg(feature = "cuda")]
impl Backward<'_, '_, '_> {
    /// Everything that is read or written besides the problem's inputs, with its name.
    pub(crate) fn for_each_view(&self, f: &mut dyn FnMut(&'static str, Layout<'_>)) {
        let Upstream { d_o, d_lse, d_u } = &self.upstream;
        let (SavedOutput::Output(saved) | SavedOutput::Attention(saved)) = &self.saved.output;
        f("saved.output", saved.layout());
        f("saved.lse", self.saved.lse.layout());
        f("d_o", d_o.layout());
        if let Some(t) = d_lse {
            f("d_lse", t.layout());
        }
        if let Some(t) = d_u {
            f("d_u", t.layout());
        }
        let Gradients { d_q, d_k, d_v, prefix, key, value } = &self.gradients;
        for (name, t) in [("d_q", d_q), ("d_k", d_k), ("d_v", d_v)] {
            f(name, t.layout());
        }
        if let Some(prefix) = prefix {
            f("d_prefix.k", prefix.k.layout());
            f("d_prefix.v", prefix.v.layout());
        }
        let mut adapter = |names: [&'static str; 4], g: &AdapterGradients<'_>| {
            f(names[0], g.down_weight.layout());
            f(names[1], g.down_bias.layout());
            f(names[2], g.up_weight.layout());
            f(names[3], g.up_bias.layout());
        };
        if let KeyGradients::Residual(g) = key {
            adapter(D_KEY, g);
        }
        if let ValueGradients::Adapter(g) = value {
            adapter(D_VALUE, g);
        }
        match key {
            KeyGradients::LogitPerHead(t) => f("d_key.logit", t.layout()),
            KeyGradients::LogitPerToken(t) => f("d_key.logit", t.layout()),
            KeyGradients::None | KeyGradients::Residual(_) => {}
        }
        if let ValueGradients::Extended(g) = value {
            f(D_VALUE[0], g.down_weight.layout());
            f(D_VALUE[1], g.down_bias.layout());
        }
    }
}

impl<'a> Problem<'a> {
    /// Checks the memory for the forward's results.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::DType`], [`Error::LastDimensionStrided`], [`Error::SelfOverlap`], [`Error::Memory`],
    /// [`Error::Overlap`], [`Error::Missing`], [`Error::Unexpected`].
    pub fn forward<'o>(&self, outputs: Outputs<'o>) -> Result<Forward<'_, 'a, 'o>> {
        let [b, h, n, d] = self.attention().q.shape();
        let mut check = OutputCheck::new(self);
        check.add("o", &outputs.o, [b, h, n, d], "[B, Hq, N, d]", self.dtype())?;
        if let Some(lse) = &outputs.lse {
            check.add("lse", lse, [b, h, n], "[B, Hq, N]", DType::F32)?;
        }
        match (&outputs.u, self.is_extended()) {
            (Some(u), true) => {
                check.add("u", u, [b, h, n, self.value_rank()], "[B, Hq, N, r_v]", self.dtype())?;
            }
            (None, true) => {
                return Err(Error::Missing { argument: "u", reason: "the extended value returns U" });
            }
            (Some(_), false) => return Err(NO_U),
            (None, false) => {}
        }
        if let Some(attn) = &outputs.attn {
            check.add("attn", attn, [b, h, n, d], "[B, Hq, N, d]", self.dtype())?;
        }
        check.finish()?;
        Ok(Forward { problem: self, outputs })
    }

    /// Checks what the backward reads and the memory for its results.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn backward<'o>(
        &self,
        saved: Saved<'a>,
        upstream: Upstream<'a>,
        gradients: Gradients<'o>,
    ) -> Result<Backward<'_, 'a, 'o>> {
        let [b, h, n, d] = self.attention().q.shape();
        let [_, h_kv, m, _] = self.attention().k.shape();
        let dtype = self.dtype();
        let mut check = OutputCheck::new(self);
        let (name, output) = match &saved.output {
            SavedOutput::Output(t) => ("saved.o", t),
            SavedOutput::Attention(t) => ("saved.attn", t),
        };
        check.input(name, output, [b, h, n, d], "[B, Hq, N, d]", dtype)?;
        check.input("saved.lse", &saved.lse, [b, h, n], "[B, Hq, N]", DType::F32)?;
        check.input("d_o", &upstream.d_o, [b, h, n, d], "[B, Hq, N, d]", dtype)?;
        if let Some(t) = &upstream.d_lse {
            check.input("d_lse", t, [b, h, n], "[B, Hq, N]", DType::F32)?;
        }
        if let Some(t) = &upstream.d_u {
            if !self.is_extended() {
                return Err(Error::Unexpected { argument: "d_u", reason: "only the extended value has U" });
            }
            check.input("d_u", t, [b, h, n, self.value_rank()], "[B, Hq, N, r_v]", dtype)?;
        }

        check.add("d_q", &gradients.d_q, [b, h, n, d], "[B, Hq, N, d]", dtype)?;
        check.add("d_k", &gradients.d_k, [b, h_kv, m, d], "[B, Hkv, M, d]", dtype)?;
        check.add("d_v", &gradients.d_v, [b, h_kv, m, d], "[B, Hkv, M, d]", dtype)?;
        if let Some(prefix) = &gradients.prefix {
            if self.attention().prefix.is_none() {
                return Err(Error::Unexpected { argument: "prefix gradients", reason: "there is no prefix" });
            }
            let shape = [h_kv, self.prefix_len(), d];
            check.add("d_prefix.k", &prefix.k, shape, "[Hkv, L, d]", DType::F32)?;
            check.add("d_prefix.v", &prefix.v, shape, "[Hkv, L, d]", DType::F32)?;
        }
        self.check_key_gradients(&gradients.key, &mut check)?;
        self.check_value_gradients(&gradients.value, &mut check)?;
        check.finish()?;
        Ok(Backward { problem: self, saved, upstream, gradients })
    }

    fn check_key_gradients<'g>(
        &self,
        gradients: &'g KeyGradients<'_>,
        check: &mut OutputCheck<'g>,
    ) -> Result<()> {
        let [b, h, n, d] = self.attention().q.shape();
        let key = self.attention().inducer.map(|i| i.key);
        match (gradients, key) {
            (KeyGradients::None, _) => Ok(()),
            (KeyGradients::Residual(g), Some(VirtualKey::Residual(_))) => {
                check.adapter(&D_KEY, g, [h, d, self.key_rank()])
            }
            (KeyGradients::LogitPerHead(g), Some(VirtualKey::LogitPerHead(_))) => {
                check.add("d_key.logit", g, [h], "[Hq]", DType::F32)
            }
            (KeyGradients::LogitPerToken(g), Some(VirtualKey::LogitPerToken(_))) => {
                check.add("d_key.logit", g, [b, h, n], "[B, Hq, N]", DType::F32)
            }
            _ => Err(Error::Unexpected {
                argument: "key gradients",
                reason: "they are not those of this problem's virtual key",
            }),
        }
    }

    fn check_value_gradients<'g>(
        &self,
        gradients: &'g ValueGradients<'_>,
        check: &mut OutputCheck<'g>,
    ) -> Result<()> {
        let [_, h, _, d] = self.attention().q.shape();
        let r = self.value_rank();
        match (gradients, self.attention().inducer.map(|i| i.value)) {
            (ValueGradients::None, _) => Ok(()),
            (ValueGradients::Adapter(g), Some(VirtualValue::Residual(_) | VirtualValue::Direct(_))) => {
                check.adapter(&D_VALUE, g, [h, d, r])
            }
            (ValueGradients::Extended(g), Some(VirtualValue::Extended(_))) => {
                check.add(D_VALUE[0], &g.down_weight, [h, d, r], "[Hq, d, r]", DType::F32)?;
                check.add(D_VALUE[1], &g.down_bias, [h, r], "[Hq, r]", DType::F32)
            }
            _ => Err(Error::Unexpected {
                argument: "value gradients",
                reason: "they are not those of this problem's virtual value",
            }),
        }
    }
}

const NO_U: Error = Error::Unexpected { argument: "u", reason: "only the extended value returns U" };
pub(crate) const D_KEY: [&str; 4] =
    ["d_key.down_weight", "d_key.down_bias", "d_key.up_weight", "d_key.up_bias"];
pub(crate) const D_VALUE: [&str; 4] =
    ["d_value.down_weight", "d_value.down_bias", "d_value.up_weight", "d_value.up_bias"];

/// Collects the memory of a call and shows that no output shares any with another view.
struct OutputCheck<'t> {
    problem: &'t Problem<'t>,
    inputs: Vec<(&'static str, Layout<'t>)>,
    outputs: Vec<(&'static str, Layout<'t>)>,
}

impl<'t> OutputCheck<'t> {
    fn new(problem: &'t Problem<'_>) -> Self {
        Self { problem, inputs: Vec::new(), outputs: Vec::new() }
    }

    fn input<const R: usize>(
        &mut self,
        argument: &'static str,
        t: &'t TensorRef<'_, R>,
        shape: [usize; R],
        names: &str,
        dtype: DType,
    ) -> Result<()> {
        expect_shape(argument, &t.shape(), &shape, names)?;
        expect_dtype(argument, t.dtype(), dtype, "as the problem requires")?;
        if R == 4 {
            contiguous_last(argument, &t.shape(), &t.strides())?;
        }
        self.inputs.push((argument, t.layout()));
        Ok(())
    }

    fn add<const R: usize>(
        &mut self,
        argument: &'static str,
        t: &'t TensorMut<'_, R>,
        shape: [usize; R],
        names: &str,
        dtype: DType,
    ) -> Result<()> {
        expect_shape(argument, &t.shape(), &shape, names)?;
        expect_dtype(argument, t.dtype(), dtype, "as the problem requires")?;
        if R == 4 {
            contiguous_last(argument, &t.shape(), &t.strides())?;
        }
        t.check_injective(argument)?;
        self.outputs.push((argument, t.layout()));
        Ok(())
    }

    fn adapter(
        &mut self,
        names: &[&'static str; 4],
        g: &'t AdapterGradients<'_>,
        [h, d, r]: [usize; 3],
    ) -> Result<()> {
        self.add(names[0], &g.down_weight, [h, d, r], "[Hq, d, r]", DType::F32)?;
        self.add(names[1], &g.down_bias, [h, r], "[Hq, r]", DType::F32)?;
        self.add(names[2], &g.up_weight, [h, r, d], "[Hq, r, d]", DType::F32)?;
        self.add(names[3], &g.up_bias, [h, d], "[Hq, d]", DType::F32)
    }

    fn finish(self) -> Result<()> {
        for (argument, layout) in self.inputs.iter().chain(&self.outputs) {
            expect_memory(argument, layout.memory, self.problem.memory())?;
        }
        for (i, (argument, output)) in self.outputs.iter().enumerate() {
            let mut overlap = None;
            let mut meets = |other, input: Layout<'_>| {
                if !output.disjoint(&input) {
                    overlap = overlap.or(Some(other));
                }
            };
            self.problem.for_each_input(&mut meets);
            if self.problem.memory() == Memory::Host {
                self.problem.for_each_list(&mut meets);
            }
            let rest = self.inputs.iter().chain(&self.outputs[..i]);
            let overlap = overlap
                .or_else(|| rest.into_iter().find(|(_, t)| !output.disjoint(t)).map(|(other, _)| *other));
            if let Some(other) = overlap {
                return Err(Error::Overlap { argument, other });
            }
        }
        Ok(())
    }
}
