//! A kind of model of one's own, proved in a child process as every other: `cargo run --example custom_kind`.

use hotserve::Builder;
use hotserve::models::{Data, InferError, LoadError, Loader, Model, Signature, Tensor};
use tokio::net::TcpListener;

/// The format `step`: the text `step 0.5`, for a model that answers 1 above that number and 0 elsewhere.
pub(crate) struct StepLoader;
struct Step(f32, Signature);
const SIGNATURE: &str = r#"{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
                            "outputs": [{"name": "is_above", "datatype": "FP32", "shape": [-1, 1]}]}"#;

impl Loader for StepLoader {
    fn format(&self) -> &'static str {
        "step"
    }
    fn recognizes(&self, bytes: &[u8]) -> bool {
        bytes.starts_with(b"step ")
    }
    fn load(&self, bytes: &[u8]) -> Result<Box<dyn Model>, LoadError> {
        let number = bytes.strip_prefix(b"step ").and_then(|rest| std::str::from_utf8(rest).ok()?.trim().parse().ok());
        let step = number.zip(serde_json::from_str(SIGNATURE).ok()).map(|(number, signature)| Step(number, signature));
        Ok(Box::new(step.ok_or(LoadError::Malformed { format: "step", detail: "write: step NUMBER".to_owned() })?))
    }
}

impl Model for Step {
    fn signature(&self) -> &Signature {
        &self.1
    }
    fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, InferError> {
        let x = inputs.first().and_then(Tensor::as_f32).unwrap_or_default();
        let answers = Data::Fp32(x.iter().map(|x| if *x > self.0 { 1.0 } else { 0.0 }).collect());
        Ok(vec![Tensor::new(vec![x.len(), 1], answers).map_err(|error| InferError::Failed(error.to_string()))?])
    }
    fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.1.memory_bytes()
    }
    fn engine(&self) -> &'static str {
        "step"
    }
}

pub(crate) async fn run(builder: Builder, at: TcpListener, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    let cloud = hotserve::embedded::Sandbox::start().await?;
    let hotserve = builder.or(cloud.settings()).endpoints(cloud.endpoints()).build().await?;
    cloud.publish_model("gate", Some(1), "step", b"step 0.5").await?;
    println!("curl {0}/predict/gate -d '{{\"instances\": [[0.4], [0.6]]}}'\ncurl {0}/models", at.local_addr()?);
    Ok(hotserve.serve(at, shutdown).await?)
}

fn main() -> anyhow::Result<std::process::ExitCode> {
    let builder = Builder::default().loader(StepLoader);
    if let Some(code) = builder.probe_child() {
        return Ok(code); // It was the child in which a model is tried.
    }
    let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    let serve = async { run(builder, TcpListener::bind("127.0.0.1:3000").await?, stop).await };
    tokio::runtime::Runtime::new()?.block_on(serve).map(|()| std::process::ExitCode::SUCCESS)
}
