//! The operators of ai.onnx that exporters put between those of ai.onnx.ml.

use std::borrow::Cow;

use super::plan::{Args, Op, Outputs, Site, TRIAL_ROWS};
use super::proto::element;
use super::value::{Buf, Fault, Shape, Slice, Text, Value, each, malformed, unsupported};

/// What [`build`] knows.
pub(super) const OPERATORS: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Cast",
    "Ceil",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Div",
    "Equal",
    "Exp",
    "Flatten",
    "Floor",
    "Gather",
    "Gemm",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "Log",
    "MatMul",
    "Max",
    "Min",
    "Mul",
    "Neg",
    "Not",
    "Or",
    "Pow",
    "Reciprocal",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Sign",
    "Softmax",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// Builds an operator of ai.onnx.
pub(super) fn build(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let node = site.node;
    Ok(match node.op_type {
        "Identity" => Box::new(Identity),
        "Constant" => Box::new(Constant(constant(site)?)),
        "ConstantOfShape" => Box::new(Filled(match node.tensor("value")? {
            Some(value) => value,
            None => Value::f32(Shape::new(&[1])?, vec![0.0]),
        })),
        "Shape" if node.has("start") || node.has("end") => return Err(unsupported("a part of a shape")),
        "Shape" => Box::new(ShapeOf),
        "Cast" => Box::new(Cast { to: node.int("to", 0)? }),
        "Concat" => Box::new(Concat { axis: node.int("axis", 0)? }),
        "Reshape" => {
            let target = site.ints(1)?.ok_or_else(|| malformed("it has no shape"))?;
            Box::new(Reshape { target, keep_zero: node.int("allowzero", 0)? != 0 })
        }
        "Flatten" => Box::new(Flatten { axis: node.int("axis", 1)? }),
        "Squeeze" => Box::new(Squeeze { axes: axes(site, 13)? }),
        "Unsqueeze" => Box::new(Unsqueeze { axes: axes(site, 13)?.ok_or_else(|| malformed("it has no axes"))? }),
        "Transpose" => Box::new(Transpose { order: node.has("perm").then(|| node.ints("perm")).transpose()? }),
        "Gather" => Box::new(Gather { axis: node.int("axis", 0)? }),
        "Neg" => number(|x| -x, |x| -x, Some(i64::wrapping_neg)),
        "Abs" => number(f32::abs, f64::abs, Some(i64::wrapping_abs)),
        "Sign" => number(sign, sign, Some(i64::signum)),
        "Sqrt" => number(f32::sqrt, f64::sqrt, None),
        "Exp" => number(f32::exp, f64::exp, None),
        "Log" => number(f32::ln, f64::ln, None),
        "Tanh" => number(f32::tanh, f64::tanh, None),
        "Floor" => number(f32::floor, f64::floor, None),
        "Ceil" => number(f32::ceil, f64::ceil, None),
        "Reciprocal" => number(f32::recip, f64::recip, None),
        // NaN stays NaN, which `max` would lose.
        "Relu" => number(|x| if x < 0.0 { 0.0 } else { x }, |x| if x < 0.0 { 0.0 } else { x }, Some(|x| x.max(0))),
        "Sigmoid" => number(|x| 1.0 / (1.0 + (-x).exp()), |x| 1.0 / (1.0 + (-x).exp()), None),
        "Clip" => clip(site)?,
        "Not" => Box::new(Not),
        "IsNaN" => Box::new(IsNan),
        "Add" => Box::new(Arithmetic::Add),
        "Sub" => Box::new(Arithmetic::Sub),
        "Mul" => Box::new(Arithmetic::Mul),
        "Div" => Box::new(Arithmetic::Div),
        "Pow" => Box::new(Arithmetic::Pow),
        "Sum" => Box::new(Arithmetic::Add),
        "Max" => Box::new(Arithmetic::Max),
        "Min" => Box::new(Arithmetic::Min),
        "Less" => Box::new(Comparison::Less),
        "LessOrEqual" => Box::new(Comparison::LessOrEqual),
        "Greater" => Box::new(Comparison::Greater),
        "GreaterOrEqual" => Box::new(Comparison::GreaterOrEqual),
        "Equal" => Box::new(Comparison::Equal),
        "And" => Box::new(Comparison::And),
        "Or" => Box::new(Comparison::Or),
        "Xor" => Box::new(Comparison::Xor),
        "Where" => Box::new(Where),
        "MatMul" => Box::new(Product { alpha: 1.0, beta: 1.0, transpose: [false, false], gemm: false }),
        "Gemm" => Box::new(Product {
            alpha: node.float("alpha", 1.0)?,
            beta: node.float("beta", 1.0)?,
            transpose: [node.int("transA", 0)? != 0, node.int("transB", 0)? != 0],
            gemm: true,
        }),
        "Softmax" if site.version < 13 => Box::new(Softmax { axis: node.int("axis", 1)?, flat: true }),
        "Softmax" => Box::new(Softmax { axis: node.int("axis", -1)?, flat: false }),
        "ReduceSum" => reduce(site, Reduction::Sum, 13)?,
        "ReduceMean" => reduce(site, Reduction::Mean, 18)?,
        "ReduceMax" => reduce(site, Reduction::Max, 18)?,
        "ReduceMin" => reduce(site, Reduction::Min, 18)?,
        "ReduceProd" => reduce(site, Reduction::Prod, 18)?,
        "ReduceSumSquare" => reduce(site, Reduction::SumSquare, 18)?,
        "ArgMax" | "ArgMin" => {
            if node.int("select_last_index", 0)? != 0 {
                return Err(unsupported("select_last_index"));
            }
            let keep = node.int("keepdims", 1)? != 0;
            Box::new(Arg { axis: node.int("axis", 0)?, keep, min: node.op_type == "ArgMin" })
        }
        other => return Err(unsupported(format!("the operator {other}"))),
    })
}

fn sign<T: PartialOrd + From<i8>>(x: T) -> T {
    if x > T::from(0) {
        T::from(1)
    } else if x < T::from(0) {
        T::from(-1)
    } else {
        x
    }
}

/// The axes of an operator: an attribute in old versions, an input in newer ones.
fn axes(site: &Site<'_, '_>, input_since: i64) -> Result<Option<Vec<i64>>, Fault> {
    if site.version < input_since {
        return site.node.has("axes").then(|| site.node.ints("axes")).transpose();
    }
    site.ints(1)
}

fn constant(site: &Site<'_, '_>) -> Result<Value<'static>, Fault> {
    let node = site.node;
    if let Some(value) = node.tensor("value")? {
        return Ok(value);
    }
    let (dims, buf): (&[usize], _) = if node.has("value_float") {
        (&[], Buf::F32(Slice::Owned(vec![node.float("value_float", 0.0)?])))
    } else if node.has("value_int") {
        (&[], Buf::I64(Slice::Owned(vec![node.int("value_int", 0)?])))
    } else if node.has("value_floats") {
        let floats = node.floats("value_floats")?;
        (&[floats.len()], Buf::F32(Slice::Owned(floats)))
    } else if node.has("value_ints") {
        let ints = node.ints("value_ints")?;
        (&[ints.len()], Buf::I64(Slice::Owned(ints)))
    } else {
        return Err(unsupported("a constant of this kind"));
    };
    Ok(Value { shape: Shape::new(dims)?, buf })
}

struct Identity;

impl Op for Identity {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        Ok(args.take(0)?.into())
    }
}

struct Constant(Value<'static>);

impl Op for Constant {
    fn run<'a>(&'a self, _: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        Ok(self.0.borrow().into())
    }
}

/// As many of one value as a shape holds that is known only now.
struct Filled(Value<'static>);

impl Op for Filled {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Buf::I64(dims) = &args.get(0)?.buf else { return Err(malformed("its shape is not int64")) };
        let dims = dims.iter().map(|dim| usize::try_from(*dim)).collect::<Result<Vec<_>, _>>();
        let shape = Shape::within(&dims.map_err(|_| malformed("its shape has a negative axis"))?, args.limit)?;
        let buf = each!(&self.0.buf, v => {
            let [value, ..] = &**v else { return Err(malformed("its value is empty")) };
            Slice::Owned(std::iter::repeat_n(value, shape.len()).cloned().collect())
        });
        Ok(Value { shape, buf }.into())
    }
}

struct ShapeOf;

impl Op for ShapeOf {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let dims = args.get(0)?.shape;
        let lengths = dims.dims().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)).collect();
        Ok(Value { shape: Shape::new(&[dims.rank()])?, buf: Buf::I64(Slice::Owned(lengths)) }.into())
    }
}

struct Cast {
    to: i64,
}

/// As the processor's own conversion does it: what does not fit becomes the least integer.
pub(super) fn to_i64(x: f64) -> i64 {
    const END: f64 = 9_223_372_036_854_775_808.0;
    if (-END..END).contains(&x) { x as i64 } else { i64::MIN }
}

fn to_i32(x: f64) -> i32 {
    let whole = x.trunc();
    if whole >= f64::from(i32::MIN) && whole <= f64::from(i32::MAX) { whole as i32 } else { i32::MIN }
}

impl Op for Cast {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let trial = args.trial;
        let Value { shape, buf } = args.take(0)?;
        fn all<A, B>(from: &[A], f: impl Fn(&A) -> B) -> Slice<'static, B> {
            Slice::Owned(from.iter().map(f).collect())
        }
        let parse = |text: &Text<'_>| match text.trim().parse::<f64>() {
            Ok(number) => Ok(number),
            Err(_) if trial => Ok(0.0),
            Err(_) => Err(Fault::Input(format!("{text:?} is no number"))),
        };
        // An integer may have more digits than a number with a point can hold.
        let whole = |text: &Text<'_>| text.trim().parse().or_else(|_| parse(text).map(to_i64));
        let parsed = |texts: &[Text<'_>]| texts.iter().map(parse).collect::<Result<Vec<f64>, _>>();
        let buf = match (self.to, buf) {
            (element::FLOAT, buf @ Buf::F32(_)) | (element::DOUBLE, buf @ Buf::F64(_)) => buf,
            (element::INT64, buf @ Buf::I64(_)) | (element::INT32, buf @ Buf::I32(_)) => buf,
            (element::BOOL, buf @ Buf::Bool(_)) | (element::STRING, buf @ Buf::Text(_)) => buf,
            (element::FLOAT, Buf::F64(v)) => Buf::F32(all(&v, |x| *x as f32)),
            (element::FLOAT, Buf::I64(v)) => Buf::F32(all(&v, |x| *x as f32)),
            (element::FLOAT, Buf::I32(v)) => Buf::F32(all(&v, |x| *x as f32)),
            (element::FLOAT, Buf::Bool(v)) => Buf::F32(all(&v, |x| f32::from(u8::from(*x)))),
            (element::FLOAT, Buf::Text(v)) => Buf::F32(all(&parsed(&v)?, |x| *x as f32)),
            (element::DOUBLE, Buf::F32(v)) => Buf::F64(all(&v, |x| f64::from(*x))),
            (element::DOUBLE, Buf::I64(v)) => Buf::F64(all(&v, |x| *x as f64)),
            (element::DOUBLE, Buf::I32(v)) => Buf::F64(all(&v, |x| f64::from(*x))),
            (element::DOUBLE, Buf::Bool(v)) => Buf::F64(all(&v, |x| f64::from(u8::from(*x)))),
            (element::DOUBLE, Buf::Text(v)) => Buf::F64(Slice::Owned(parsed(&v)?)),
            (element::INT64, Buf::F32(v)) => Buf::I64(all(&v, |x| to_i64(f64::from(*x)))),
            (element::INT64, Buf::F64(v)) => Buf::I64(all(&v, |x| to_i64(*x))),
            (element::INT64, Buf::I32(v)) => Buf::I64(all(&v, |x| i64::from(*x))),
            (element::INT64, Buf::Bool(v)) => Buf::I64(all(&v, |x| i64::from(*x))),
            (element::INT64, Buf::Text(v)) => Buf::I64(Slice::Owned(v.iter().map(whole).collect::<Result<_, _>>()?)),
            (element::INT32, Buf::F32(v)) => Buf::I32(all(&v, |x| to_i32(f64::from(*x)))),
            (element::INT32, Buf::F64(v)) => Buf::I32(all(&v, |x| to_i32(*x))),
            (element::INT32, Buf::I64(v)) => Buf::I32(all(&v, |x| *x as i32)),
            (element::INT32, Buf::Bool(v)) => Buf::I32(all(&v, |x| i32::from(*x))),
            (element::BOOL, Buf::F32(v)) => Buf::Bool(all(&v, |x| *x != 0.0)),
            (element::BOOL, Buf::F64(v)) => Buf::Bool(all(&v, |x| *x != 0.0)),
            (element::BOOL, Buf::I64(v)) => Buf::Bool(all(&v, |x| *x != 0)),
            (element::BOOL, Buf::I32(v)) => Buf::Bool(all(&v, |x| *x != 0)),
            (element::STRING, Buf::I64(v)) => Buf::Text(all(&v, |x| Cow::Owned(x.to_string()))),
            (element::STRING, Buf::I32(v)) => Buf::Text(all(&v, |x| Cow::Owned(x.to_string()))),
            (element::STRING, Buf::F32(v)) => Buf::Text(all(&v, |x| Cow::Owned(general(f64::from(*x), 8)))),
            (element::STRING, Buf::F64(v)) => Buf::Text(all(&v, |x| Cow::Owned(general(*x, 17)))),
            (to, buf) => return Err(unsupported(format!("a cast from {} to the element type {to}", buf.type_name()))),
        };
        Ok(Value { shape, buf }.into())
    }
}

/// C's `%.<digits>g`, with the words of the specification for what is no number.
fn general(x: f64, digits: usize) -> String {
    if x.is_nan() {
        return "NaN".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "INF" } else { "-INF" }.to_owned();
    }
    let scientific = format!("{x:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let short = |number: &str| match number.contains('.') {
        true => number.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => number.to_owned(),
    };
    match usize::try_from(exponent) {
        Ok(whole) if whole < digits => short(&format!("{x:.*}", digits - 1 - whole)),
        Err(_) if exponent >= -4 => short(&format!("{x:.*}", digits - 1 + exponent.unsigned_abs() as usize)),
        _ => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{}e{sign}{:02}", short(mantissa), exponent.unsigned_abs())
        }
    }
}

struct Concat {
    axis: i64,
}

impl Op for Concat {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let first = args.get(0)?;
        let axis = first.shape.axis(self.axis)?;
        let (outer, _, inner) = first.shape.around(axis);
        let mut dims = first.shape.dims().to_vec();
        let mut total = 0_usize;
        for at in 0..args.len() {
            let shape = args.get(at)?.shape;
            let (own_outer, along, own_inner) = shape.around(axis);
            if shape.rank() != dims.len() || own_outer != outer || own_inner != inner {
                return Err(malformed(format!("the shapes {:?} and {dims:?} cannot be joined", shape.dims())));
            }
            total = total.saturating_add(along);
        }
        if let Some(dim) = dims.get_mut(axis) {
            *dim = total;
        }
        let shape = Shape::within(&dims, args.limit)?;
        macro_rules! join {
            ($kind:ident) => {{
                let mut joined = Vec::with_capacity(shape.len());
                let mut parts = Vec::with_capacity(args.len());
                for at in 0..args.len() {
                    let part = args.get(at)?;
                    let Buf::$kind(elements) = &part.buf else {
                        return Err(malformed(format!("{} is joined to another type", part.buf.type_name())));
                    };
                    parts.push((&**elements, part.shape.around(axis).1 * inner));
                }
                for row in 0..outer {
                    for (elements, width) in &parts {
                        joined.extend_from_slice(elements.get(row * width..(row + 1) * width).unwrap_or_default());
                    }
                }
                Buf::$kind(Slice::Owned(joined))
            }};
        }
        let buf = match &first.buf {
            Buf::Bool(_) => join!(Bool),
            Buf::I32(_) => join!(I32),
            Buf::I64(_) => join!(I64),
            Buf::F32(_) => join!(F32),
            Buf::F64(_) => join!(F64),
            Buf::Text(_) => join!(Text),
        };
        Ok(Value { shape, buf }.into())
    }
}

struct Reshape {
    target: Vec<i64>,
    keep_zero: bool,
}

impl Op for Reshape {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        let unfit = || malformed(format!("the shape {:?} does not become {:?}", shape.dims(), self.target));
        let mut dims = Vec::with_capacity(self.target.len());
        let mut open = None;
        for (at, length) in self.target.iter().enumerate() {
            dims.push(match *length {
                0 if !self.keep_zero => *shape.dims().get(at).ok_or_else(unfit)?,
                -1 if open.is_none() => {
                    open = Some(at);
                    1
                }
                length => usize::try_from(length).map_err(|_| unfit())?,
            });
        }
        if let Some(dim) = open.and_then(|at| dims.get_mut(at)) {
            *dim = 1;
            let known = dims.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim)).ok_or_else(unfit)?;
            if let Some(dim) = open.and_then(|at| dims.get_mut(at)) {
                *dim = shape.len().checked_div(known).ok_or_else(unfit)?;
            }
        }
        let reshaped = Shape::within(&dims, args.limit)?;
        if reshaped.len() != shape.len() {
            return Err(unfit());
        }
        Ok(Value { shape: reshaped, buf }.into())
    }
}

struct Flatten {
    axis: i64,
}

impl Op for Flatten {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        let end = shape.rank() as u64 == self.axis.unsigned_abs() && self.axis >= 0;
        let axis = if end { shape.rank() } else { shape.axis(self.axis)? };
        let outer: usize = shape.dims().iter().take(axis).product();
        let inner: usize = shape.dims().iter().skip(axis).product();
        Ok(Value { shape: Shape::new(&[outer, inner])?, buf }.into())
    }
}

struct Squeeze {
    axes: Option<Vec<i64>>,
}

impl Op for Squeeze {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        // Without axes all of length 1 would go, and with them the row of a batch of one.
        let axes = self.axes.as_ref().ok_or_else(|| unsupported("no axes"))?;
        let axes = axes.iter().map(|axis| shape.axis(*axis)).collect::<Result<Vec<_>, _>>()?;
        let mut dims = Vec::with_capacity(shape.rank());
        for (at, length) in shape.dims().iter().enumerate() {
            match (axes.contains(&at), length) {
                (false, length) => dims.push(*length),
                (true, 1) => {}
                (true, length) => return Err(malformed(format!("axis {at} is {length} long, not 1"))),
            }
        }
        Ok(Value { shape: Shape::new(&dims)?, buf }.into())
    }
}

struct Unsqueeze {
    axes: Vec<i64>,
}

impl Op for Unsqueeze {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        let full = Shape::new(&vec![1; shape.rank() + self.axes.len()])?;
        let axes = self.axes.iter().map(|axis| full.axis(*axis)).collect::<Result<Vec<_>, _>>()?;
        let mut old = shape.dims().iter();
        let dims = (0..full.rank()).map(|at| if axes.contains(&at) { 1 } else { old.next().copied().unwrap_or(1) });
        let unsqueezed = Shape::new(&dims.collect::<Vec<_>>())?;
        if old.next().is_some() || unsqueezed.len() != shape.len() {
            return Err(malformed(format!("the axes {:?} are not one each", self.axes)));
        }
        Ok(Value { shape: unsqueezed, buf }.into())
    }
}

struct Transpose {
    order: Option<Vec<i64>>,
}

impl Op for Transpose {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let rank = value.shape.rank();
        let order = match &self.order {
            None => (0..rank).rev().collect(),
            Some(order) => order.iter().map(|axis| value.shape.axis(*axis)).collect::<Result<Vec<_>, _>>()?,
        };
        let mut seen = order.clone();
        seen.sort_unstable();
        if !seen.into_iter().eq(0..rank) {
            return Err(malformed(format!("{order:?} is no order of {rank} axes")));
        }
        let strides = strides(value.shape.dims());
        let pick = |list: &[usize]| order.iter().map(|axis| list.get(*axis).copied().unwrap_or(0)).collect::<Vec<_>>();
        let (dims, strides) = (pick(value.shape.dims()), pick(&strides));
        let places = places(&dims, &strides);
        let buf = each!(&value.buf, v => Slice::Owned(places.iter().filter_map(|at| v.get(*at).cloned()).collect()));
        Ok(Value { shape: Shape::new(&dims)?, buf }.into())
    }
}

fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    let mut step = 1;
    for (stride, length) in strides.iter_mut().zip(dims).rev() {
        *stride = step;
        step *= length;
    }
    strides
}

/// Where each element lies, in row-major order of `dims`, in a buffer with these strides.
fn places(dims: &[usize], strides: &[usize]) -> Vec<usize> {
    let mut places = vec![0];
    for (length, stride) in dims.iter().zip(strides) {
        places = places.iter().flat_map(|place| (0..*length).map(move |at| place + at * stride)).collect();
    }
    places
}

struct Gather {
    axis: i64,
}

impl Op for Gather {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let (value, picked) = (args.get(0)?, args.get(1)?);
        let axis = value.shape.axis(self.axis)?;
        let (outer, along, inner) = value.shape.around(axis);
        let indices = indices(args, 1, along)?;
        let dims = value.shape.dims();
        let mut shape = dims.iter().take(axis).copied().collect::<Vec<_>>();
        shape.extend(picked.shape.dims());
        shape.extend(dims.iter().skip(axis + 1));
        let shape = Shape::within(&shape, args.limit)?;
        let buf = each!(&value.buf, v => {
            let mut gathered = Vec::with_capacity(shape.len());
            for row in 0..outer {
                for index in &indices {
                    let from = (row * along + index) * inner;
                    gathered.extend_from_slice(v.get(from..from + inner).unwrap_or_default());
                }
            }
            Slice::Owned(gathered)
        });
        Ok(Value { shape, buf }.into())
    }
}

/// An input of indices below `end`; negative ones count from there. Those that are no constants come from the caller.
pub(super) fn indices(args: &Args<'_, '_>, at: usize, end: usize) -> Result<Vec<usize>, Fault> {
    let constant = args.is_constant(at);
    let index = |index: i64| {
        let from_end = if index < 0 { index.checked_add_unsigned(end as u64) } else { Some(index) };
        let index_ok = from_end.and_then(|index| usize::try_from(index).ok()).filter(|index| *index < end);
        match (index_ok, i64::try_from(end)) {
            (Some(index), _) => Ok(index),
            (None, Ok(end)) if args.trial && !constant && end > 0 => Ok(index.rem_euclid(end) as usize),
            _ if constant || end == 0 => Err(malformed(format!("the index {index} is not below {end}"))),
            _ => Err(Fault::Input(format!("the index {index} is not below {end}"))),
        }
    };
    match &args.get(at)?.buf {
        Buf::I64(v) => v.iter().map(|at| index(*at)).collect(),
        Buf::I32(v) => v.iter().map(|at| index(i64::from(*at))).collect(),
        other => Err(malformed(format!("indices are {}", other.type_name()))),
    }
}

/// A function of each number.
struct Number {
    f32: fn(f32) -> f32,
    f64: fn(f64) -> f64,
    i64: Option<fn(i64) -> i64>,
}

fn number(f32: fn(f32) -> f32, f64: fn(f64) -> f64, i64: Option<fn(i64) -> i64>) -> Box<dyn Op> {
    Box::new(Number { f32, f64, i64 })
}

impl Op for Number {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        let buf = match (buf, self.i64) {
            (Buf::F32(v), _) => Buf::F32(map(v, self.f32)),
            (Buf::F64(v), _) => Buf::F64(map(v, self.f64)),
            (Buf::I64(v), Some(f)) => Buf::I64(map(v, f)),
            (Buf::I32(v), Some(f)) => Buf::I32(map(v, |x| f(i64::from(x)) as i32)),
            (other, _) => return Err(unsupported(format!("its type {}", other.type_name()))),
        };
        Ok(Value { shape, buf }.into())
    }
}

fn map<'a, T: Copy>(slice: Slice<'a, T>, f: impl Fn(T) -> T) -> Slice<'a, T> {
    Slice::Owned(match slice {
        Slice::Borrowed(slice) => slice.iter().map(|x| f(*x)).collect(),
        Slice::Owned(mut vec) => {
            vec.iter_mut().for_each(|x| *x = f(*x));
            vec
        }
    })
}

/// Least and greatest; NaN passes.
struct Clip {
    min: f64,
    max: f64,
}

fn clip(site: &Site<'_, '_>) -> Result<Box<dyn Op>, Fault> {
    let bound = |at: usize, name: &str, default: f64| -> Result<f64, Fault> {
        if site.version < 11 {
            return Ok(if site.node.has(name) { f64::from(site.node.float(name, 0.0)?) } else { default });
        }
        let first = match site.constant(at)?.map(|value| &value.buf) {
            None => return Ok(default),
            Some(Buf::F32(v)) => v.first().map(|x| f64::from(*x)),
            Some(Buf::F64(v)) => v.first().copied(),
            Some(other) => return Err(unsupported(format!("its type {}", other.type_name()))),
        };
        first.ok_or_else(|| malformed("a bound is empty"))
    };
    let (min, max) = (bound(1, "min", f64::NEG_INFINITY)?, bound(2, "max", f64::INFINITY)?);
    Ok(Box::new(Clip { min, max }))
}

impl Op for Clip {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        let clip = |x: f64| {
            let x = if x < self.min { self.min } else { x };
            if x > self.max { self.max } else { x }
        };
        let buf = match buf {
            Buf::F32(v) => Buf::F32(map(v, |x| clip(f64::from(x)) as f32)),
            Buf::F64(v) => Buf::F64(map(v, clip)),
            other => return Err(unsupported(format!("its type {}", other.type_name()))),
        };
        Ok(Value { shape, buf }.into())
    }
}

struct Not;

impl Op for Not {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        match args.take(0)? {
            Value { shape, buf: Buf::Bool(v) } => Ok(Value { shape, buf: Buf::Bool(map(v, |x| !x)) }.into()),
            other => Err(malformed(format!("its input is {}", other.buf.type_name()))),
        }
    }
}

struct IsNan;

impl Op for IsNan {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let nan = match &value.buf {
            Buf::F32(v) => v.iter().map(|x| x.is_nan()).collect(),
            Buf::F64(v) => v.iter().map(|x| x.is_nan()).collect(),
            other => return Err(malformed(format!("its input is {}", other.type_name()))),
        };
        Ok(Value { shape: value.shape, buf: Buf::Bool(Slice::Owned(nan)) }.into())
    }
}

/// Pairs two tensors element by element; axes of length 1 are repeated, and missing ones put in front.
fn pair<A, B, C>(
    (a, a_shape): (&[A], &Shape),
    (b, b_shape): (&[B], &Shape),
    limit: usize,
    f: impl Fn(&A, &B) -> C,
) -> Result<(Shape, Vec<C>), Fault> {
    if a_shape == b_shape {
        return Ok((*a_shape, a.iter().zip(b).map(|(a, b)| f(a, b)).collect()));
    }
    if let [b] = b
        && b_shape.rank() <= a_shape.rank()
    {
        return Ok((*a_shape, a.iter().map(|a| f(a, b)).collect()));
    }
    if !b.is_empty() && a_shape.dims().ends_with(b_shape.dims()) {
        return Ok((*a_shape, a.chunks(b.len()).flat_map(|a| a.iter().zip(b)).map(|(a, b)| f(a, b)).collect()));
    }
    let shape = broadcast(a_shape, b_shape, limit)?;
    let (a_places, b_places) = (repeated(a_shape, &shape), repeated(b_shape, &shape));
    let pairs = a_places.iter().zip(&b_places).filter_map(|(at, bt)| Some(f(a.get(*at)?, b.get(*bt)?)));
    Ok((shape, pairs.collect()))
}

fn broadcast(a: &Shape, b: &Shape, limit: usize) -> Result<Shape, Fault> {
    let rank = a.rank().max(b.rank());
    let dim = |shape: &Shape, at: usize| {
        (at + shape.rank()).checked_sub(rank).and_then(|at| shape.dims().get(at)).copied().unwrap_or(1)
    };
    let dims = (0..rank).map(|at| match (dim(a, at), dim(b, at)) {
        (x, y) if x == y => Ok(x),
        (1, x) | (x, 1) => Ok(x),
        _ => Err(malformed(format!("the shapes {:?} and {:?} do not fit", a.dims(), b.dims()))),
    });
    Shape::within(&dims.collect::<Result<Vec<_>, _>>()?, limit)
}

/// Where the elements of `shape` lie in a tensor that is repeated to it.
fn repeated(own: &Shape, shape: &Shape) -> Vec<usize> {
    let missing = shape.rank().saturating_sub(own.rank());
    let steps = strides(own.dims());
    let steps = own.dims().iter().zip(steps).map(|(length, step)| if *length == 1 { 0 } else { step });
    let steps: Vec<usize> = std::iter::repeat_n(0, missing).chain(steps).collect();
    places(shape.dims(), &steps)
}

/// Of two tensors; sums, least and greatest of any number of them.
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Max,
    Min,
}

trait Calculate: Copy + PartialOrd {
    fn calculate(self, how: &Arithmetic, other: Self) -> Self;
}

macro_rules! calculate {
    ($type:ty, $nan:expr, $add:expr, $sub:expr, $mul:expr, $div:expr, $pow:expr) => {
        impl Calculate for $type {
            fn calculate(self, how: &Arithmetic, other: Self) -> Self {
                let nan: fn($type) -> bool = $nan;
                match how {
                    Arithmetic::Add => $add(self, other),
                    Arithmetic::Sub => $sub(self, other),
                    Arithmetic::Mul => $mul(self, other),
                    Arithmetic::Div => $div(self, other),
                    Arithmetic::Pow => $pow(self, other),
                    Arithmetic::Max if self > other || nan(self) => self,
                    Arithmetic::Min if self < other || nan(self) => self,
                    Arithmetic::Max | Arithmetic::Min => other,
                }
            }
        }
    };
}
calculate!(f32, |x| x.is_nan(), |a, b| a + b, |a, b| a - b, |a, b| a * b, |a, b| a / b, f32::powf);
calculate!(f64, |x| x.is_nan(), |a, b| a + b, |a, b| a - b, |a, b| a * b, |a, b| a / b, f64::powf);
calculate!(i64, |_| false, i64::wrapping_add, i64::wrapping_sub, i64::wrapping_mul, quotient, power);
calculate!(
    i32,
    |_| false,
    i32::wrapping_add,
    i32::wrapping_sub,
    i32::wrapping_mul,
    |a, b| quotient(i64::from(a), i64::from(b)) as i32,
    |a, b| power(i64::from(a), i64::from(b)) as i32
);

/// Where the quotient is no integer, the answer is 0, which the specification leaves open.
fn quotient(a: i64, b: i64) -> i64 {
    if b == 0 { 0 } else { a.wrapping_div(b) }
}

fn power(a: i64, b: i64) -> i64 {
    to_i64((a as f64).powf(b as f64))
}

impl Op for Arithmetic {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let mut sum = args.take(0)?;
        for at in 1..args.len() {
            sum = self.apply(sum, args.get(at)?, args.limit)?;
        }
        Ok(sum.into())
    }
}

impl Arithmetic {
    fn apply<'a>(&self, a: Value<'a>, b: &Value<'_>, limit: usize) -> Result<Value<'a>, Fault> {
        macro_rules! apply {
            ($kind:ident, $a:expr, $b:expr) => {
                match $a {
                    // In place, where the result has the same shape.
                    Slice::Owned(mut owned) if !$b.is_empty() && a.shape.dims().ends_with(b.shape.dims()) => {
                        for chunk in owned.chunks_mut($b.len()) {
                            chunk.iter_mut().zip($b.iter()).for_each(|(a, b)| *a = a.calculate(self, *b));
                        }
                        (a.shape, Buf::$kind(Slice::Owned(owned)))
                    }
                    slice => {
                        let left = (&*slice, &a.shape);
                        let (shape, both) = pair(left, (&**$b, &b.shape), limit, |a, b| a.calculate(self, *b))?;
                        (shape, Buf::$kind(Slice::Owned(both)))
                    }
                }
            };
        }
        let (shape, buf) = match (a.buf, &b.buf) {
            (Buf::F32(x), Buf::F32(y)) => apply!(F32, x, y),
            (Buf::F64(x), Buf::F64(y)) => apply!(F64, x, y),
            (Buf::I64(x), Buf::I64(y)) => apply!(I64, x, y),
            (Buf::I32(x), Buf::I32(y)) => apply!(I32, x, y),
            (x, y) => return Err(unsupported(format!("its types {} and {}", x.type_name(), y.type_name()))),
        };
        Ok(Value { shape, buf })
    }
}

enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
    And,
    Or,
    Xor,
}

impl Op for Comparison {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let (a, b, limit) = (args.get(0)?, args.get(1)?, args.limit);
        fn compare<T: PartialOrd>(how: &Comparison, a: &T, b: &T) -> bool {
            match how {
                Comparison::Less => a < b,
                Comparison::LessOrEqual => a <= b,
                Comparison::Greater => a > b,
                Comparison::GreaterOrEqual => a >= b,
                _ => a == b,
            }
        }
        macro_rules! compare {
            ($a:expr, $b:expr) => {
                pair((&**$a, &a.shape), (&**$b, &b.shape), limit, |a, b| compare(self, a, b))?
            };
        }
        let logic = matches!(self, Self::And | Self::Or | Self::Xor);
        let (shape, both) = match (&a.buf, &b.buf) {
            (Buf::Bool(x), Buf::Bool(y)) if logic => {
                pair((&**x, &a.shape), (&**y, &b.shape), limit, |a, b| match self {
                    Self::And => *a && *b,
                    Self::Or => *a || *b,
                    _ => a != b,
                })?
            }
            (Buf::F32(x), Buf::F32(y)) if !logic => compare!(x, y),
            (Buf::F64(x), Buf::F64(y)) if !logic => compare!(x, y),
            (Buf::I64(x), Buf::I64(y)) if !logic => compare!(x, y),
            (Buf::I32(x), Buf::I32(y)) if !logic => compare!(x, y),
            (Buf::Bool(x), Buf::Bool(y)) if matches!(self, Self::Equal) => compare!(x, y),
            (Buf::Text(x), Buf::Text(y)) if matches!(self, Self::Equal) => compare!(x, y),
            (x, y) => return Err(unsupported(format!("its types {} and {}", x.type_name(), y.type_name()))),
        };
        Ok(Value { shape, buf: Buf::Bool(Slice::Owned(both)) }.into())
    }
}

struct Where;

impl Op for Where {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let (condition, yes, no) = (args.get(0)?, args.get(1)?, args.get(2)?);
        let Buf::Bool(chosen) = &condition.buf else {
            return Err(malformed(format!("its condition is {}", condition.buf.type_name())));
        };
        let limit = args.limit;
        let shape = broadcast(&condition.shape, &broadcast(&yes.shape, &no.shape, limit)?, limit)?;
        let places = [condition, yes, no].map(|value| repeated(&value.shape, &shape));
        let [chosen_at, yes_at, no_at] = &places;
        macro_rules! choose {
            ($kind:ident, $yes:expr, $no:expr) => {{
                let places = chosen_at.iter().zip(yes_at.iter().zip(no_at));
                let choose = |(chosen_at, (yes_at, no_at)): (&usize, (&usize, &usize))| match *chosen.get(*chosen_at)? {
                    true => $yes.get(*yes_at).cloned(),
                    false => $no.get(*no_at).cloned(),
                };
                Buf::$kind(Slice::Owned(places.filter_map(choose).collect()))
            }};
        }
        let buf = match (&yes.buf, &no.buf) {
            (Buf::Bool(x), Buf::Bool(y)) => choose!(Bool, x, y),
            (Buf::I32(x), Buf::I32(y)) => choose!(I32, x, y),
            (Buf::I64(x), Buf::I64(y)) => choose!(I64, x, y),
            (Buf::F32(x), Buf::F32(y)) => choose!(F32, x, y),
            (Buf::F64(x), Buf::F64(y)) => choose!(F64, x, y),
            (Buf::Text(x), Buf::Text(y)) => choose!(Text, x, y),
            (x, y) => return Err(malformed(format!("it chooses between {} and {}", x.type_name(), y.type_name()))),
        };
        Ok(Value { shape, buf }.into())
    }
}

/// A product of two matrices, and what is added to it.
struct Product {
    alpha: f32,
    beta: f32,
    transpose: [bool; 2],
    gemm: bool,
}

impl Op for Product {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let (a, b, limit) = (args.get(0)?, args.get(1)?, args.limit);
        let (&[a_rows, a_columns], &[b_rows, b_columns]) = (a.shape.dims(), b.shape.dims()) else {
            return Err(unsupported(format!("a product of the shapes {:?} and {:?}", a.shape.dims(), b.shape.dims())));
        };
        let [a_turned, b_turned] = self.transpose;
        if a_turned {
            return Err(unsupported("transA"));
        }
        let (inner, columns) = if b_turned { (b_columns, b_rows) } else { (b_rows, b_columns) };
        if a_columns != inner {
            return Err(malformed(format!("the shapes {:?} and {:?} do not fit", a.shape.dims(), b.shape.dims())));
        }
        let shape = Shape::within(&[a_rows, columns], limit)?;
        // What a short file may cost in time: in the trial, and a row thereafter.
        let rows = if args.trial { a_rows } else { a_rows.min(TRIAL_ROWS) };
        if rows.saturating_mul(columns).saturating_mul(inner) > limit.saturating_mul(64) {
            return Err(unsupported(format!("a product of the shapes {:?} and {:?}", a.shape.dims(), b.shape.dims())));
        }
        let buf = match (&a.buf, &b.buf) {
            (Buf::F32(x), Buf::F32(y)) => Buf::F32(Slice::Owned(product(x, y, (a_rows, inner, columns), b_turned))),
            (Buf::F64(x), Buf::F64(y)) => Buf::F64(Slice::Owned(product(x, y, (a_rows, inner, columns), b_turned))),
            (x, y) => return Err(unsupported(format!("its types {} and {}", x.type_name(), y.type_name()))),
        };
        let mut value = Value { shape, buf };
        if self.gemm {
            let (alpha, beta) = (self.alpha, self.beta);
            if alpha != 1.0 {
                value.buf = scaled(value.buf, alpha);
            }
            if let Some(c) = args.opt(2) {
                let c =
                    if beta == 1.0 { c.borrow() } else { Value { shape: c.shape, buf: scaled(c.buf.clone(), beta) } };
                value = Arithmetic::Add.apply(value, &c, limit)?;
            }
        }
        Ok(value.into())
    }
}

fn scaled(buf: Buf<'_>, factor: f32) -> Buf<'_> {
    match buf {
        Buf::F32(v) => Buf::F32(map(v, |x| x * factor)),
        Buf::F64(v) => Buf::F64(map(v, |x| x * f64::from(factor))),
        other => other,
    }
}

/// `a` times `b`, row by row; columns go on side by side, so that the compiler may take several at once.
pub(super) fn product<T>(a: &[T], b: &[T], (rows, inner, columns): (usize, usize, usize), b_turned: bool) -> Vec<T>
where
    T: Copy + Default + std::ops::Mul<Output = T> + std::ops::AddAssign,
{
    let mut result = vec![T::default(); rows * columns];
    if columns == 0 || inner == 0 {
        return result;
    }
    for (row, sums) in a.chunks_exact(inner).zip(result.chunks_exact_mut(columns)) {
        if b_turned {
            for (column, sum) in b.chunks_exact(inner).zip(sums) {
                row.iter().zip(column).for_each(|(a, b)| *sum += *a * *b);
            }
        } else {
            for (a, line) in row.iter().zip(b.chunks_exact(columns)) {
                sums.iter_mut().zip(line).for_each(|(sum, b)| *sum += *a * *b);
            }
        }
    }
    result
}

struct Softmax {
    axis: i64,
    /// Of old: over all axes from this one on.
    flat: bool,
}

impl Op for Softmax {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let Value { shape, buf } = args.take(0)?;
        let axis = shape.axis(self.axis)?;
        let (_, along, inner) = shape.around(axis);
        let width = if self.flat { along * inner } else { along };
        if !self.flat && inner != 1 {
            return Err(unsupported("an axis that is not the last"));
        }
        macro_rules! softmax {
            ($v:expr, $least:expr) => {{
                let mut vec = $v.into_vec();
                for row in vec.chunks_mut(width.max(1)) {
                    let max = row.iter().fold($least, |max, x| if *x > max { *x } else { max });
                    let mut sum = 0.0;
                    for x in row.iter_mut() {
                        *x = (*x - max).exp();
                        sum += *x;
                    }
                    row.iter_mut().for_each(|x| *x /= sum);
                }
                Slice::Owned(vec)
            }};
        }
        let buf = match buf {
            Buf::F32(v) => Buf::F32(softmax!(v, f32::MIN)),
            Buf::F64(v) => Buf::F64(softmax!(v, f64::MIN)),
            other => return Err(malformed(format!("its input is {}", other.type_name()))),
        };
        Ok(Value { shape, buf }.into())
    }
}

#[derive(Clone, Copy)]
enum Reduction {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    SumSquare,
}

struct Reduce {
    how: Reduction,
    axes: Option<Vec<i64>>,
    keep: bool,
}

fn reduce(site: &Site<'_, '_>, how: Reduction, input_since: i64) -> Result<Box<dyn Op>, Fault> {
    if site.node.int("noop_with_empty_axes", 0)? != 0 {
        return Err(unsupported("noop_with_empty_axes"));
    }
    let axes = axes(site, input_since)?.filter(|axes| !axes.is_empty());
    Ok(Box::new(Reduce { how, axes, keep: site.node.int("keepdims", 1)? != 0 }))
}

impl Op for Reduce {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let [axis] = self.axes.as_deref().unwrap_or_default() else {
            return Err(unsupported("other than one axis"));
        };
        let axis = value.shape.axis(*axis)?;
        let (outer, along, inner) = value.shape.around(axis);
        let shape = without(&value.shape, axis, self.keep, args.limit)?;
        macro_rules! reduce {
            ($kind:ident, $v:expr, $type:ty, $div:expr) => {{
                let mut reduced = Vec::with_capacity(shape.len());
                for row in 0..outer {
                    for column in 0..inner {
                        let line = (0..along).filter_map(|at| $v.get((row * along + at) * inner + column).copied());
                        let sum = |line: &mut dyn Iterator<Item = $type>| {
                            line.fold(<$type>::default(), |a, b| a.calculate(&Arithmetic::Add, b))
                        };
                        let best = |line: &mut dyn Iterator<Item = $type>, how: Arithmetic| {
                            line.reduce(|a, b| a.calculate(&how, b)).unwrap_or_default()
                        };
                        let mut line = line;
                        reduced.push(match self.how {
                            Reduction::Sum => sum(&mut line),
                            Reduction::Mean => $div(sum(&mut line), along),
                            Reduction::SumSquare => sum(&mut line.map(|x| x.calculate(&Arithmetic::Mul, x))),
                            Reduction::Max => best(&mut line, Arithmetic::Max),
                            Reduction::Min => best(&mut line, Arithmetic::Min),
                            Reduction::Prod => best(&mut line, Arithmetic::Mul),
                        });
                    }
                }
                Buf::$kind(Slice::Owned(reduced))
            }};
        }
        let buf = match &value.buf {
            Buf::F32(v) => reduce!(F32, v, f32, |sum: f32, n: usize| sum / n as f32),
            Buf::F64(v) => reduce!(F64, v, f64, |sum: f64, n: usize| sum / n as f64),
            Buf::I64(v) => reduce!(I64, v, i64, |sum: i64, n: usize| quotient(sum, to_i64(n as f64))),
            other => return Err(unsupported(format!("its type {}", other.type_name()))),
        };
        Ok(Value { shape, buf }.into())
    }
}

/// An axis of no length leaves the others as long as they are.
fn without(shape: &Shape, axis: usize, keep: bool, limit: usize) -> Result<Shape, Fault> {
    let dims = shape.dims().iter().enumerate().filter_map(|(at, length)| match (at == axis, keep) {
        (false, _) => Some(*length),
        (true, true) => Some(1),
        (true, false) => None,
    });
    Shape::within(&dims.collect::<Vec<_>>(), limit)
}

struct Arg {
    axis: i64,
    keep: bool,
    min: bool,
}

impl Op for Arg {
    fn run<'a>(&'a self, args: &mut Args<'_, 'a>) -> Result<Outputs<'a>, Fault> {
        let value = args.get(0)?;
        let axis = value.shape.axis(self.axis)?;
        let (outer, along, inner) = value.shape.around(axis);
        let shape = without(&value.shape, axis, self.keep, args.limit)?;
        fn best<T: PartialOrd + Copy>(line: impl Iterator<Item = T>, min: bool) -> i64 {
            let mut best: Option<(usize, T)> = None;
            for (at, x) in line.enumerate() {
                if best.is_none_or(|(_, best)| if min { x < best } else { x > best }) {
                    best = Some((at, x));
                }
            }
            best.map_or(0, |(at, _)| to_i64(at as f64))
        }
        macro_rules! best {
            ($v:expr) => {{
                let line = |row: usize, column: usize| {
                    (0..along).filter_map(move |at| $v.get((row * along + at) * inner + column).copied())
                };
                let all = (0..outer).flat_map(|row| (0..inner).map(move |column| (row, column)));
                all.map(|(row, column)| best(line(row, column), self.min)).collect()
            }};
        }
        let at = match &value.buf {
            Buf::F32(v) => best!(v),
            Buf::F64(v) => best!(v),
            Buf::I64(v) => best!(v),
            Buf::I32(v) => best!(v),
            other => return Err(unsupported(format!("its type {}", other.type_name()))),
        };
        Ok(Value { shape, buf: Buf::I64(Slice::Owned(at)) }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_printf_writes_them() {
        for (x, digits, text) in [
            (0.0, 8, "0"),
            (1.0, 8, "1"),
            (-2.5, 8, "-2.5"),
            (f64::from(0.1_f32), 8, "0.1"),
            (123_456_792.0, 8, "1.2345679e+08"),
            (12_345_678.0, 8, "12345678"),
            (1e-5, 8, "1e-05"),
            (0.000_1, 8, "0.0001"),
            (0.1, 17, "0.10000000000000001"),
            (f64::NAN, 8, "NaN"),
            (f64::NEG_INFINITY, 8, "-INF"),
        ] {
            assert_eq!(general(x, digits), text);
        }
    }

    #[test]
    fn axes_of_one_are_repeated() {
        let shape = |dims: &[usize]| Shape::new(dims).expect("a shape");
        let (column, row) = (shape(&[2, 1]), shape(&[3]));
        let (both, sums) = pair((&[10, 20], &column), (&[1, 2, 3], &row), 6, |a, b| a + b).expect("they fit");
        assert_eq!((both.dims(), sums), (&[2, 3][..], vec![11, 12, 13, 21, 22, 23]));
        assert!(pair((&[1, 2], &shape(&[2])), (&[1, 2, 3], &row), 6, |a, b| a + b).is_err());
        assert!(pair((&[10, 20], &column), (&[1, 2, 3], &row), 5, |a, b| a + b).is_err());
    }
}
