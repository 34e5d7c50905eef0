mod header;
use crate::workspace::Workspace;
pub(crate) fn command(w: &Workspace) -> anyhow::Result<bool> {
    std::fs::write(header::folder(w).join(header::NAME), header::generate(w)?)?;
    header::compile("gcc", &header::folder(w).join(header::NAME))?;
    Ok(true)
}
