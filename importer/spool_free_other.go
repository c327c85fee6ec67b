//go:build !(linux || darwin || windows)

package importer

// freeBytes does not know.
func freeBytes(string) (free int64, known bool) { return 0, false }
