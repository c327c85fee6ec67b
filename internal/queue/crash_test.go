package queue

// crashDirEnv makes the test binary enqueue into the data directory that it names, until it is killed.
const crashDirEnv = "GROUPFERRY_QUEUE_CRASH_DIR"

func crashChild(string) {}
