//! The kernels' machine code that this build holds.

/// Aligned as the driver's loader may expect.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

/// One compiled source.
struct Fatbin {
    /// The source's name.
    name: &'static str,
    image: &'static Aligned<[u8]>,
}

static FATBINS: &[Fatbin] = &include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Names and contents of the embedded fatbins; none where the build found no CUDA compiler.
pub fn fatbins() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    FATBINS.iter().map(|fatbin| (fatbin.name, &fatbin.image.0))
}

/// What ptxas said about each kernel and target (registers, spills, memory): for tests and benchmarks. Empty where the fatbins
/// were not compiled by this build.
pub fn compiler_report() -> &'static str {
    include_str!(concat!(env!("OUT_DIR"), "/ptxas.txt"))
}
