package importer

import "slices"

// Examples are some groups of each kind of a plan on a base: the first by user and name.
type Examples struct {
	Create, Add, Remove, Delete, Rename, Unchanged []GroupName
}

// A GroupName names a group.
type GroupName struct {
	FromAccount string `json:"from_account"`
	GroupName   string `json:"group_name"`
}

// maxExamples of each kind are found.
const maxExamples = 3

type exampleKind int

const (
	exampleCreate exampleKind = iota
	exampleAdd
	exampleRemove
	exampleDelete
	exampleRename
	exampleUnchanged
	exampleKinds
)

// examples has the smallest keys of each kind.
type examples [exampleKinds]*smallest

func newExamples() *examples {
	e := new(examples)
	for kind := range e {
		e[kind] = newSmallest(maxExamples)
	}
	return e
}

// add adds a group; nil wants none.
func (e *examples) add(kind exampleKind, key groupKey) {
	if e != nil {
		e[kind].add(key)
	}
}

func (e *examples) addAll(other *examples) {
	for kind := range e {
		e[kind].addAll(other[kind])
	}
}

func (e *examples) all() Examples {
	of := func(kind exampleKind) (all []GroupName) {
		for _, key := range e[kind].sorted() {
			k := groupKey(key)
			all = append(all, GroupName{string(k.user()), string(k.name())})
		}
		return all
	}
	return Examples{
		Create: of(exampleCreate), Add: of(exampleAdd), Remove: of(exampleRemove), Delete: of(exampleDelete),
		Rename: of(exampleRename), Unchanged: of(exampleUnchanged),
	}
}

func (s *smallest) addAll(other *smallest) {
	for _, v := range other.heap {
		s.add([]byte(v))
	}
}

func (s *smallest) sorted() []string { return slices.Sorted(slices.Values(s.heap)) }

// otherGroups are those of conflicts: a key with the name of the other sync behind it.
func otherGroups(conflicts *smallest) (all []OtherGroup) {
	for _, c := range conflicts.sorted() {
		key, sync := decodeGroupKey([]byte(c))
		all = append(all, OtherGroup{string(sync), string(key.user()), string(key.name())})
	}
	return all
}
