// The rows of loss/rows.h as the compiler makes them for AVX2.
#include "loss/rows.h"

namespace pvp_fast {

const row_functions kRowsAvx2{row_loss, row_project};

}  // namespace pvp_fast
