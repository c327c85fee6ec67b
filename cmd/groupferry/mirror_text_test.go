package main

import (
	"strings"
	"testing"

	"groupferry/internal/app"
)

// Reports tell what was removed, restored, deleted and renamed, and nothing of it where nothing was.
func TestTextsOfAMirror(t *testing.T) {
	s := app.ImportStatus{Import: "x", State: "complete", Deleted: 1_234, Renamed: 2,
		Removals: app.ConversationCounts{Total: 5_000, Done: 4_998, Failed: 2}, Restored: app.ConversationCounts{Total: 7, Done: 7}}
	text := importText(&s, "")
	for _, want := range []string{
		"  removals       5,000     done 4,998 · failed 2 · pending 0\n", "  restored       7         done 7 · failed 0: their groups were gone\n",
		"  groups         deleted 1,234 · renamed 2\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("got %q, want %q in it", text, want)
		}
	}
	f := app.Failures{Import: "x", Done: 3, Removed: 1_000, RemovalsFailed: 1, Deleted: 2, Codes: []app.FailureCode{{Code: "51007", Count: 1,
		Example: app.ResultLine{FromAccount: "anna", GroupName: "g", Type: 1, ToAccount: "bob", Op: app.OpRemove}}}}
	text = failuresText(&f)
	for _, want := range []string{"3 conversations done, 0 failed; 1,000 removed, 1 not; groups deleted 2\n", `such as the removal of bob from "g" of anna`} {
		if !strings.Contains(text, want) {
			t.Errorf("got %q, want %q in it", text, want)
		}
	}
	text = importText(&app.ImportStatus{}, "") + failuresText(&app.Failures{})
	for _, word := range []string{"remov", "restored", "deleted", "renamed"} {
		if strings.Contains(text, word) {
			t.Errorf("of an import that is none: got %q", text)
		}
	}
}
