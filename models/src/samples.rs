//! Small models, really trained, that the demo and the tests serve. `samples/README.md` says how they were made.

/// A model with everything that is needed to publish it, prove it and ask it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Sample {
    /// The name to serve it by.
    pub name: &'static str,
    /// The [`Loader`](crate::Loader) that reads it.
    pub format: &'static str,
    /// What it predicts, from what.
    pub description: &'static str,
    /// The artifact.
    pub bytes: &'static [u8],
    /// Another training of the same model, whose answers visibly differ: for showing a swap.
    pub retrained: Option<&'static [u8]>,
    /// The artifact's usual file name.
    pub file_name: &'static str,
    /// A [`Golden`](crate::Golden) document for `bytes`.
    pub golden: &'static str,
    /// A body for `/predict`.
    pub example: &'static str,
}

/// Every sample, the simplest first.
pub fn all() -> &'static [Sample] {
    const {
        &[
            Sample {
                name: "iris",
                format: "linear",
                description: "The species of an iris flower from four lengths in centimetres; softmax regression",
                bytes: include_bytes!("../samples/iris/model.json"),
                retrained: Some(include_bytes!("../samples/iris/retrained.json")),
                file_name: "model.json",
                golden: include_str!("../samples/iris/golden.json"),
                example: r#"{"instances":[[5.1,3.5,1.4,0.2]]}"#,
            },
            Sample {
                name: "fraud",
                format: "xgboost",
                description: "The probability that a card payment is fraud, on made-up data; 100 boosted trees",
                bytes: include_bytes!("../samples/fraud/model.ubj"),
                retrained: None,
                file_name: "model.ubj",
                golden: include_str!("../samples/fraud/golden.json"),
                example: r#"{"instances":[{"amount":912.5,"hour":3,"distance_km":840.0,"minutes_since_last":2.5,"merchant_risk":0.71,"account_age_days":40,"is_online":1}]}"#,
            },
        ]
    }
}
