//! How long a body takes on its way to tensors, in each form, and tensors on their way to an answer.
//!
//! `cargo bench --bench bodies` prints the median of the rounds for each case, and its ratio to the first of its group.

#[expect(dead_code, unused_imports, reason = "the parser and the writer as the crate has them, which keeps them to itself")]
#[path = "../src/http"]
mod http {
    pub mod answer;
    pub mod body;
}

mod serving {
    pub use hotserve::serving::layout;
}

use std::fmt::Write as _;
use std::hint::black_box;
use std::time::Instant;

use hotserve_models::{Data, DataType, Dim, Signature, Tensor, TensorSpec};
use serving::layout::Layout;

const ROUNDS: usize = 15;
const ROWS: usize = 64;
const WIDTH: usize = 28;

/// What is measured: its name, and one call of it.
type Case<'c> = (&'static str, Box<dyn Fn() + 'c>);

fn main() {
    let names: Vec<String> = (0..WIDTH).map(|column| format!("feature_{column}")).collect();
    let spec = |name: &str, features: &[String]| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        shape: vec![Dim::Any, Dim::Fixed(WIDTH)],
        features: features.to_vec(),
    };
    let signature = Signature { inputs: vec![spec("x", &names)], outputs: vec![spec("y", &[])] };
    let layout = Layout::of(&signature);
    let bodies = Bodies::new(&names);
    let plain = |body: &str| {
        let read = http::body::plain::parse(black_box(body.as_bytes()), &signature, &layout);
        black_box(read).expect("the scanner reads it");
    };
    let general = |body: &str| {
        black_box(http::body::parse(black_box(body.as_bytes()), &signature, &layout)).expect("the rows fit");
    };
    let csv = |body: &str| {
        let read = http::body::csv::parse(black_box(body.as_bytes()), http::body::csv::Names::Present, &signature, &layout);
        black_box(read).expect("the rows fit");
    };
    measure(
        "64 rows of 28 numbers",
        &[
            ("rows", Box::new(|| plain(&bodies.rows))),
            ("by name", Box::new(|| plain(&bodies.named))),
            ("by name, shuffled", Box::new(|| plain(&bodies.shuffled))),
            ("rows, general parser", Box::new(|| general(&bodies.rows))),
            ("by name, general parser", Box::new(|| general(&bodies.named))),
            ("by name, shuffled, general parser", Box::new(|| general(&bodies.shuffled))),
            ("dataframe_split", Box::new(|| general(&bodies.split))),
            ("dataframe_split, shuffled", Box::new(|| general(&bodies.split_shuffled))),
            ("CSV", Box::new(|| csv(&bodies.csv))),
        ],
    );

    let scores: Vec<f32> = (0..ROWS * WIDTH).map(|at| 1.0 / (at as f32 + 1.7)).collect();
    let doubles: Vec<f64> = scores.iter().map(|score| f64::from(*score).sqrt()).collect();
    let integers: Vec<i64> = (0..ROWS * WIDTH).map(|at| i64::try_from(at * at).unwrap_or(0)).collect();
    for (name, data) in [("FP32", Data::Fp32(scores)), ("FP64", Data::Fp64(doubles)), ("INT64", Data::Int64(integers))] {
        let outputs = [Tensor::new(vec![ROWS, WIDTH], data).expect("as many as the shape says")];
        let serde = || match outputs[0].data() {
            Data::Fp32(values) => by_serde(values),
            Data::Fp64(values) => by_serde(values),
            Data::Int64(values) => by_serde(values),
            _ => Vec::new(),
        };
        let ours = || http::answer::write(&outputs, &signature, ROWS, b"}");
        measure(
            &format!("an answer of 64 rows of 28 {name}"),
            &[
                ("each element by serde_json", Box::new(|| drop(black_box(serde())))),
                ("the writer", Box::new(|| drop(black_box(ours())))),
            ],
        );
    }
}

/// The plainest writer of the same answer.
fn by_serde<T: serde::Serialize>(values: &[T]) -> Vec<u8> {
    let mut out = Vec::with_capacity(values.len() * 12 + 20);
    out.extend_from_slice(b"{\"predictions\":[");
    for (index, row) in black_box(values).chunks(WIDTH).enumerate() {
        out.extend_from_slice(if index > 0 { b",[" } else { b"[" });
        for (index, value) in row.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut out, value).expect("a Vec takes every write");
        }
        out.push(b']');
    }
    out.extend_from_slice(b"]}");
    out
}

/// The same table in each form.
struct Bodies {
    rows: String,
    named: String,
    shuffled: String,
    split: String,
    split_shuffled: String,
    csv: String,
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
        let instances = |row: &dyn Fn(usize) -> String| {
            join(",", "{\"instances\":[", "]}", &mut (0..ROWS).map(row))
        };
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
        Self {
            rows: instances(&|row| list(row, &in_order)),
            named: instances(&|row| object(row, &in_order)),
            shuffled: instances(&|row| object(row, &shuffle)),
            split: split(&in_order),
            split_shuffled: split(&shuffle),
            csv,
        }
    }
}

/// Measures all cases of a group in turn, round by round, so that what else the machine does meets all of them.
fn measure(group: &str, cases: &[Case<'_>]) {
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
    println!("{group}");
    for ((name, _), median) in cases.iter().zip(&medians) {
        println!("  {name:36} {median:8.2} µs  × {:.2}", median / medians[0]);
    }
}
