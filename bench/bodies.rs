//! How long a body takes on its way to tensors, in each form.
//!
//! `cargo bench --bench bodies` prints the median of the rounds for each form, and its ratio to rows without names.

#[expect(dead_code, unused_imports, reason = "the parser as the crate has it, which keeps it to itself")]
#[path = "../src/http"]
mod http {
    mod body;

    use std::hint::black_box;

    use hotserve_models::Signature;

    use crate::serving::layout::Layout;

    pub fn plain(body: &str, signature: &Signature, layout: &Layout) {
        let read = body::plain::parse(black_box(body.as_bytes()), signature, layout);
        black_box(read).expect("the scanner reads it");
    }

    pub fn general(body: &str, signature: &Signature, layout: &Layout) {
        black_box(body::parse(black_box(body.as_bytes()), signature, layout)).expect("the rows fit");
    }

    pub fn csv(body: &str, signature: &Signature, layout: &Layout) {
        let read = body::csv::parse(black_box(body.as_bytes()), body::csv::Names::Present, signature, layout);
        black_box(read).expect("the rows fit");
    }
}

mod serving {
    pub use hotserve::serving::*;
}

use std::cell::Cell;
use std::fmt::Write as _;
use std::time::Instant;

use hotserve_models::{DataType, Dim, Signature, TensorSpec};
use serving::layout::Layout;

const ROUNDS: usize = 15;
const ROWS: usize = 64;
const WIDTH: usize = 28;

/// What is measured: its name, and one call of it.
type Case<'c> = (&'static str, Box<dyn Fn() + 'c>);

fn main() {
    let names: Vec<String> = (0..WIDTH).map(|column| format!("feature_{column}")).collect();
    let spec = TensorSpec {
        name: "x".to_owned(),
        datatype: DataType::Fp32,
        shape: vec![Dim::Any, Dim::Fixed(WIDTH)],
        features: names.clone(),
    };
    let signature = Signature { inputs: vec![spec], outputs: vec![] };
    let layout = Layout::of(&signature);
    let bodies = Bodies::new(&names);
    let plain = |body: &str| http::plain(body, &signature, &layout);
    let general = |body: &str| http::general(body, &signature, &layout);
    let csv = |body: &str| http::csv(body, &signature, &layout);
    measure(&[
        ("rows", Box::new(|| plain(&bodies.rows))),
        ("rows of short decimals", Box::new(|| plain(bodies.short.next()))),
        ("rows of short decimals, spaced", Box::new(|| plain(bodies.short_spaced.next()))),
        ("rows of short decimals, none side by side", Box::new(|| plain(bodies.short_ending.next()))),
        ("rows of short decimals, general parser", Box::new(|| general(bodies.short.next()))),
        ("by name", Box::new(|| plain(&bodies.named))),
        ("by name, shuffled", Box::new(|| plain(&bodies.shuffled))),
        ("rows, general parser", Box::new(|| general(&bodies.rows))),
        ("by name, general parser", Box::new(|| general(&bodies.named))),
        ("by name, shuffled, general parser", Box::new(|| general(&bodies.shuffled))),
        ("dataframe_split", Box::new(|| plain(&bodies.split))),
        ("dataframe_split, shuffled", Box::new(|| plain(&bodies.split_shuffled))),
        ("dataframe_split, general parser", Box::new(|| general(&bodies.split))),
        ("dataframe_split, shuffled, general parser", Box::new(|| general(&bodies.split_shuffled))),
        ("CSV", Box::new(|| csv(&bodies.csv))),
    ]);
}

/// The same table in each form.
struct Bodies {
    rows: String,
    short: Several,
    short_spaced: Several,
    /// With a space before each bracket, so that they are read one number after the other.
    short_ending: Several,
    named: String,
    shuffled: String,
    split: String,
    split_shuffled: String,
    csv: String,
}

/// Bodies that take turns: a processor would soon know each digit of one that comes again and again.
struct Several {
    bodies: [String; 8],
    next: Cell<usize>,
}

impl Several {
    fn next(&self) -> &str {
        let next = self.next.replace(self.next.get() + 1);
        &self.bodies[next % self.bodies.len()]
    }
}

impl Bodies {
    fn new(names: &[String]) -> Self {
        let value = |row: usize, column: usize| (row * 31 + column * 17) as f32 / 7.0 - 20.0;
        let shuffle: Vec<usize> = (0..WIDTH).map(|at| at * 11 % WIDTH).collect();
        let in_order: Vec<usize> = (0..WIDTH).collect();
        let join = |separator: &str, open: &str, close: &str, items: &mut dyn Iterator<Item = String>| {
            format!("{open}{}{close}", items.collect::<Vec<_>>().join(separator))
        };
        let list = |row: usize, order: &[usize]| {
            join(",", "[", "]", &mut order.iter().map(|column| value(row, *column).to_string()))
        };
        let object = |row: usize, order: &[usize]| {
            let fields = &mut order.iter().map(|column| format!("{:?}:{}", names[*column], value(row, *column)));
            join(",", "{", "}", fields)
        };
        let instances = |row: &dyn Fn(usize) -> String| join(",", "{\"instances\":[", "]}", &mut (0..ROWS).map(row));
        let split = |order: &[usize]| {
            let columns = join(",", "[", "]", &mut order.iter().map(|column| format!("{:?}", names[*column])));
            let data = join(",", "[", "]", &mut (0..ROWS).map(|row| list(row, order)));
            format!("{{\"dataframe_split\":{{\"columns\":{columns},\"data\":{data}}}}}")
        };
        let mut csv = names.join(",");
        for row in 0..ROWS {
            let values: Vec<String> = (0..WIDTH).map(|column| value(row, column).to_string()).collect();
            write!(csv, "\n{}", values.join(",")).expect("a String takes every write");
        }
        let mut random = fastrand::Rng::with_seed(28);
        let mut short = |separator: &str, close: &str| {
            let mut body = || {
                let mut number = |_| (f64::from(random.i32(-20_000..20_000)) / 1e4).to_string();
                let mut row = |_| join(separator, "[", close, &mut (0..WIDTH).map(&mut number));
                join(separator, "{\"instances\":[", "]}", &mut (0..ROWS).map(&mut row))
            };
            Several { bodies: std::array::from_fn(|_| body()), next: Cell::default() }
        };
        Self {
            short: short(",", "]"),
            short_spaced: short(", ", "]"),
            short_ending: short(",", " ]"),
            rows: instances(&|row| list(row, &in_order)),
            named: instances(&|row| object(row, &in_order)),
            shuffled: instances(&|row| object(row, &shuffle)),
            split: split(&in_order),
            split_shuffled: split(&shuffle),
            csv,
        }
    }
}

/// Measures all cases in turn, round by round, so that what else the machine does meets all of them.
fn measure(cases: &[Case<'_>]) {
    const CALLS: u32 = 50;
    let mut times = vec![Vec::with_capacity(ROUNDS); cases.len()];
    for _ in 0..ROUNDS {
        for ((_, call), times) in cases.iter().zip(&mut times) {
            let start = Instant::now();
            (0..CALLS).for_each(|_| call());
            times.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS));
        }
    }
    let medians: Vec<f64> = times
        .into_iter()
        .map(|mut times| {
            times.sort_unstable_by(f64::total_cmp);
            times[ROUNDS / 2]
        })
        .collect();
    println!("{ROWS} rows of {WIDTH} numbers");
    for ((name, _), median) in cases.iter().zip(&medians) {
        println!("  {name:42} {median:8.2} µs  × {:.2}", median / medians[0]);
    }
}
