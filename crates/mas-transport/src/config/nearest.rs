//! Which known name an unknown one was meant to be.

/// The known name that is nearest, if one is near enough to be meant: two edits at most, and no
/// more than a third of the name.
pub(crate) fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |name: &str| strsim::osa_distance(unknown, name);
    let near = known
        .map(|name| (distance(name), name))
        .filter(|(edits, name)| {
            let length = unknown.len().max(name.len());
            *edits <= 2 && 3 * edits <= length
        });
    near.min_by_key(|(edits, _)| *edits).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        let known = ["STREAM_MAX_LEN", "DB", "ADDR", "HOST"];
        let found = |unknown| nearest(unknown, known.into_iter());
        assert_eq!(found("STREAM_MAXLEN"), Some("STREAM_MAX_LEN"));
        assert_eq!(found("STREAM_MAX_LNE"), Some("STREAM_MAX_LEN"));
        assert_eq!(found("DBS"), Some("DB"));
        assert_eq!(found("ADRR"), Some("ADDR"));
        assert_eq!(found("TTL"), None);
        assert_eq!(found("DC"), None);
        assert_eq!(found("SERVICE_HOST"), None);
    }
}
