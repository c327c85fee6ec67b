package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"groupferry/internal/broker"
	"groupferry/internal/queue"
)

// minPrefix is how many characters of an import ID a person has to give: four hex digits have 65,536 values, and an import
// lasts until somebody deletes it.
const minPrefix = 4

// An AmbiguousError says that several imports can be meant.
type AmbiguousError struct {
	Text    string
	Imports []queue.Import // newest first
}

func (e *AmbiguousError) Error() string {
	ids := make([]string, len(e.Imports))
	for i, c := range e.Imports {
		ids[i] = c.ID
	}
	return fmt.Sprintf("several imports begin with %s: %s", e.Text, strings.Join(ids, ", "))
}

// FindImport returns the ID of the import that a person names by it, or by a prefix of it: at least four characters, with
// which no other begins, or the error is an [*AmbiguousError]. An ID that is there is meant as it is, also if others begin
// with it. Where nothing fits, the error wraps [queue.ErrNoImport], and others are the imports that there are.
//
// With inFull, for what cannot be undone, only an ID that was made from content may be shortened: the name of an import that
// is gone must not be taken for a prefix of the next one's.
func (n *Namespace) FindImport(ctx context.Context, text string, inFull bool) (id string, others []queue.Import, err error) {
	if _, err = n.Import(ctx, text); !errors.Is(err, queue.ErrNoImport) {
		if errors.As(err, new(*broker.DamagedError)) { // its command says what that means
			err = nil
		}
		return text, nil, err
	}
	all, listErr := n.Imports(ctx)
	if listErr != nil {
		return text, nil, listErr
	}
	fits := slices.DeleteFunc(slices.Clone(all), func(i queue.Import) bool {
		return len(text) < minPrefix || !strings.HasPrefix(i.ID, text) || inFull && !madeFromContent(i.ID)
	})
	switch len(fits) {
	case 0:
		return text, all, err
	case 1:
		return fits[0].ID, nil, nil
	}
	return text, nil, &AmbiguousError{text, fits}
}

// madeFromContent reports whether an import ID can be one that nobody chose: 16 hex digits.
func madeFromContent(id string) bool {
	return len(id) == 16 && strings.Trim(id, "0123456789abcdef") == ""
}

// Records reads the records of imports, newest first, and of syncs, without a trace: see ReadOnly of [broker.Config].
func Records(ctx context.Context, cfg broker.Config) ([]queue.Import, []queue.Sync, error) {
	cfg.ReadOnly = true
	conn, err := broker.Open(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	return queue.Records(ctx, conn)
}
