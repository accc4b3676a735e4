// What comes before the first call: the processor's leave, and memory that calls share.
#include "step3_cpu.h"
#include "team.h"

extern "C" int64_t step3_prepare() { return step3::request_matrix_unit(); }
extern "C" Workspace *step3_workspace_new() { return new Workspace(); }
extern "C" void step3_workspace_free(Workspace *workspace) { delete workspace; }
