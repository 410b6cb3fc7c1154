//! The reference page of all variables is what the table says.

use std::path::Path;

use mas_transport::Config;

#[test]
fn the_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/variables.md");
    let made = Config::reference_markdown();
    if std::env::var_os("UPDATE_DOCS").is_some_and(|v| !v.is_empty()) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let line = made
        .lines()
        .zip(kept.lines())
        .position(|(made, kept)| made != kept);
    assert!(
        made == kept,
        "docs/reference/variables.md is stale{}: run UPDATE_DOCS=1 cargo test -p mas-transport \
         --test variables",
        line.map_or(String::new(), |line| format!(" from line {}", line + 1))
    );
}
