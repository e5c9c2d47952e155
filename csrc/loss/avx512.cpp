// loss/softmax.h and the rows of loss/rows.h as the compiler makes them for AVX-512F.
#include "loss/softmax.h"

namespace pvp_fast {

const row_functions kRowsAvx512 = kFunctions;

}  // namespace pvp_fast
