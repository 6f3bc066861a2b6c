//! The value of a Kubernetes quantity (`1.5Gi`, `250m`, `1e3`) in its base unit. It is a float: use it only to compare and to show.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in base units, or `None` when the text is not a quantity.
pub fn value(quantity: &Quantity) -> Option<f64> {
    let text = quantity.0.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0_f64.powi(2),
        "Gi" => 1024.0_f64.powi(3),
        "Ti" => 1024.0_f64.powi(4),
        "Pi" => 1024.0_f64.powi(5),
        "Ei" => 1024.0_f64.powi(6),
        _ => return text.parse().ok().filter(|_| suffix.starts_with(['e', 'E'])),
    };
    number.parse::<f64>().ok().map(|n| n * factor)
}

/// The value in whole bytes: a size, not an exact number above 2^53. `None` when the text is not a quantity.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // The cast saturates.
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    value(quantity).map(|bytes| bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::float_cmp)]
    fn quantities_are_compared_by_value() {
        let of = |text: &str| value(&Quantity(text.to_owned()));
        assert!(of("1Gi") > of("1G") && of("1.5Gi") < of("2Gi") && of("1024") < of("2Ki"));
        assert_eq!((of("250m"), of("1e3"), of("2E")), (Some(0.25), Some(1000.0), Some(2e18)));
        let whole = |text: &str| bytes(&Quantity(text.to_owned()));
        assert_eq!((whole("1.5Ki"), whole("0"), whole("-1"), whole("99E"), whole("x")), (Some(1536), Some(0), None, Some(u64::MAX), None));
        for none in ["lots", "", "Gi", "1 Gi", "1e", "-"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
