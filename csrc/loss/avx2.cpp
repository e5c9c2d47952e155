// loss/softmax.h and the rows of loss/rows.h as the compiler makes them for AVX2.
#include "loss/softmax.h"

namespace pvp_fast {

const row_functions kRowsAvx2 = kFunctions;

}  // namespace pvp_fast
