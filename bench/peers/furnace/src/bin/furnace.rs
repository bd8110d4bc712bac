//! furnace-server with the evaluator that hotserve has: `furnace PORT MODEL`. What differs is the server.

use std::error::Error;

use axum::Router;
use furnace::{HostTensor, IoSpec, Model, ModelError, Server, TensorModel, Values};
use hotserve_models::{Data, Loader, Tensor, XgboostLoader};
use tokio::net::TcpListener;

struct Trees {
    model: Box<dyn hotserve_models::Model>,
    features: usize,
}

impl std::fmt::Debug for Trees {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trees")
    }
}

fn failed(error: impl ToString) -> ModelError {
    ModelError::InferenceFailed(error.to_string())
}

impl TensorModel for Trees {
    fn name(&self) -> &str {
        "trees"
    }

    fn backend(&self) -> &str {
        "cpu"
    }

    fn inputs(&self) -> Vec<IoSpec> {
        vec![IoSpec::fp32("input", &[self.features])]
    }

    fn outputs(&self) -> Vec<IoSpec> {
        vec![IoSpec::fp32("prediction", &[1])]
    }

    fn run(&self, inputs: Vec<HostTensor>) -> furnace::Result<Vec<HostTensor>> {
        let mut inputs = inputs.into_iter();
        let Some(HostTensor { shape, values: Values::F32(values) }) = inputs.next() else {
            return Err(failed("no input of FP32").into());
        };
        let rows = shape.first().copied().unwrap_or(0);
        let input = Tensor::new(shape, Data::Fp32(values)).map_err(failed)?;
        let outputs = self.model.infer(&[input]).map_err(failed)?;
        let answer = outputs.first().and_then(Tensor::as_f32).unwrap_or_default().to_vec();
        Ok(vec![HostTensor { shape: vec![rows, 1], values: Values::F32(answer) }])
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().ok_or("furnace PORT MODEL")?.parse()?;
    let bytes = std::fs::read(arguments.next().ok_or("furnace PORT MODEL")?)?;
    let model = XgboostLoader.load(&bytes)?;
    let features = model.signature().inputs.first().and_then(|input| input.row_len()).ok_or("no input")?;
    // Its default refuses more requests at once than it has processors; the bench has up to 64.
    let server = Server::new().configure(|config| config.max_concurrent_requests = 256);
    let router: Router = server.model(Model::custom(Trees { model, features })).router()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    Ok(axum::serve(axum::serve::ListenerExt::tap_io(listener, |io| drop(io.set_nodelay(true))), router).await?)
}
