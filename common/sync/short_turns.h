// How soon a thread runs that has just been woken, on processors that others keep busy.
#pragma once

namespace mneme::sync {

// Asks the kernel for turns of 0.1 ms for this thread and those that it starts from now on. A
// thread so marked takes its processor over at once when it is woken, where it would else wait for
// the end of the running thread's turn, a few milliseconds; in exchange it keeps it for moments
// only. Right for threads that move messages, wrong for those that compute. Priorities and shares
// stay as they are, and no privilege is needed. Returns false where the kernel (before Linux 6.12)
// has no such setting; all goes on as before then.
bool AskForShortTurns();

}  // namespace mneme::sync
