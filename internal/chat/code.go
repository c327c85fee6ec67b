package chat

import (
	"cmp"
	"slices"
	"strconv"
)

// The codes that this project sends, looks for or simulates. [Codes] lists all that are known.
const (
	CodeUserNotImported      = 50001
	CodeBadParameter         = 50002
	CodeNotAdmin             = 50003
	CodeInternal             = 50004
	CodeInternalTimeout      = 50005
	CodeItemCount            = 51006
	CodeGroupUnresolved      = 51007
	CodeTooManyConversations = 51008
	CodeNoSuchGroup          = 51009
	CodeTooManyGroups        = 51010
	CodeGroupNameTooLong     = 51011
	CodeEditionLacks         = 51013
	CodeBadURL               = 60002
	CodeBadJSON              = 60003
	CodeBadSDKAppID          = 60006
	CodeThrottled            = 60007
	CodeNotOffered           = 60009
	CodeAppThrottled         = 60011
	CodeSDKAppIDMissing      = 60012
	CodeAppDisabled          = 60016
	CodeSigExpired           = 70001
	CodeSigEmpty             = 70002
	CodeSigUnparsable        = 70003
	CodeSigWrongKey          = 70009
	CodeSigOtherIdentifier   = 70013
	CodeSigOtherApp          = 70014
	CodeNoAccount            = 70107
)

// A Class says what to do about a code.
type Class int

// The classes.
const (
	Unknown      Class = iota // in no document: a few tries, then permanent
	Retry                     // the same job later, with back-off and jitter
	Throttle                  // slow the command down and make the call again; counts as no attempt
	Refresh                   // sign again once and repeat; if it fails again, halt
	Halt                      // every job would fail the same way: stop all calls and keep the jobs
	HaltRepeated              // retry; halt when repeated
	Permanent                 // of this job or this conversation only: record it as failed and continue
	ItemRetry                 // of one conversation: try it twice more, then permanent for it
)

var classNames = [...]string{
	"unknown", "retry", "throttle", "refresh", "halt", "halt-repeated", "permanent", "item-retry",
}

func (c Class) String() string {
	if c < 0 || int(c) >= len(classNames) {
		c = Unknown
	}
	return classNames[c]
}

// What an operator can do, where more than one code calls for it.
const (
	remedyKey     = "check that the secret key is the one of this SDKAppID"
	remedyAdmin   = "set the admin to an app admin account of this app"
	remedyRequest = "check the API URL, the SDKAppID and the admin account"
	remedyRegion  = "check the SDKAppID and that the region is the one the app was made in"
	remedyLater   = "try again later; if it stays, ask the vendor"
	remedyAccount = "import the account of that user into the app, then retry"
	remedyReport  = "please report it: the request should not have been made so"
)

type codeFacts struct {
	code    int
	class   Class
	meaning string
	remedy  string
}

// codes is the one table of what is known about a code, in the order of the codes. Numbers and meanings are from the
// vendor's list of error codes and the document of each command; the classes are this project's.
var codes = [...]codeFacts{
	{50001, Permanent, "the user id was never imported", remedyAccount},
	{50002, Permanent, "bad parameter", "fix the row: an id or a name in it is none that the API takes"},
	{50003, Halt, "the caller is no app admin", remedyAdmin},
	{50004, Retry, "internal error", remedyLater},
	{50005, Retry, "internal timeout", remedyLater},
	{51006, Permanent, "no conversations, or more than 100", "set the chunk size to 100 or less"},
	{51007, ItemRetry, "the group id could not be resolved: an internal error, or the group was disbanded", "check that the group chat exists, then retry"},
	{51008, Permanent, "more than 1,000 conversations", "put the rest into another group"},
	{51009, Permanent, "no such group", "retry: the group is created anew"},
	{51010, Permanent, "more than 20 groups", "put the rows into fewer groups of that user, or delete some of them in the app"},
	{51011, Permanent, "the group name has more than 32 bytes", "shorten the name: a Chinese character has 3 bytes"},
	{51012, Permanent, "too many pinned conversations", "have the user unpin some"},
	{51013, Halt, "the app's edition lacks the feature", "upgrade the app in the console to an edition with conversation groups: Pro, Pro Plus, Enterprise, or of older ones Ultimate"},
	{60002, HaltRepeated, "the URL could not be parsed", remedyRequest},
	{60003, Permanent, "the JSON could not be parsed", remedyReport},
	{60004, HaltRepeated, "the account or the signature of the request is wrong", remedyRequest},
	{60005, HaltRepeated, "the account or the signature of the request is wrong", remedyRequest},
	{60006, Halt, "bad SDKAppID", "check the SDKAppID"},
	{60007, Throttle, "over the call limit of this command", ""},
	{60008, Retry, "the service timed out", remedyLater},
	{60009, Halt, "wrong resource: the command is not offered here", "check the API URL and the region"},
	{60010, Halt, "the caller is no app admin", remedyAdmin},
	{60011, Throttle, "over the call limit of the app", ""},
	{60012, Halt, "the SDKAppID is missing", "set the SDKAppID"},
	{60013, Retry, "the service's response could not be parsed", remedyLater},
	{60014, Retry, "the change of accounts timed out", remedyLater},
	{60015, Permanent, "an account in the request is no string", remedyReport},
	{60016, Halt, "the app is disabled", "enable the app in the console"},
	{60017, Halt, "forbidden", "ask the vendor why requests of this app are forbidden"},
	{60018, Throttle, "too many requests", ""},
	{60019, Throttle, "too many requests", ""},
	{60020, Halt, "the app's plan has expired", "renew the plan in the console"},
	{60021, Halt, "the caller's IP address is not on the allow-list", "put this host's address on the app's allow-list"},
	{70001, Refresh, "the UserSig has expired", "set a fresh UserSig, or the secret key; check this host's clock"},
	{70002, Halt, "the UserSig is empty", "set the secret key or a UserSig"},
	{70003, Halt, "the UserSig cannot be parsed", "check that the UserSig is complete; " + remedyKey},
	{70005, Halt, "the UserSig's check failed", remedyKey},
	{70009, Halt, "the UserSig was made with another key", remedyKey},
	{70013, Halt, "the UserSig was made for another account", "check the admin account"},
	{70014, Halt, "the UserSig was made for another SDKAppID", "check the SDKAppID"},
	{70016, Halt, "no key was found for the app", remedyRegion},
	{70020, Halt, "the app was not found", remedyRegion},
	{70050, Halt, "locked for a minute after repeated signature failures", remedyKey + ", and wait a minute"},
	{70051, Permanent, "the account is blocked", "unblock the account in the console, or leave its rows out"},
	{70052, Refresh, "the UserSig is no longer valid", "set a fresh UserSig, or the secret key"},
	{70107, Permanent, "the account does not exist", remedyAccount},
	{70114, Halt, "rejected for security reasons", "check the secret key and the admin account"},
	{70169, Retry, "internal timeout of the account system", remedyLater},
	{70202, Retry, "internal timeout of the account system", remedyLater},
	{70206, Permanent, "bad number in the request", remedyReport},
	{70398, Permanent, "over the limit of accounts", "have the vendor raise the limit of the app"},
	{70402, Permanent, "bad parameter for the account system", remedyReport},
	{70403, Halt, "the caller may not do this", remedyAdmin},
	{70500, Retry, "internal error of the account system", remedyLater},
	{80001, Permanent, "the text was rejected by the content filter", "change the name of the group, or the content filter of the app"},
}

// lookup finds what is known about a code.
func lookup(code int) codeFacts {
	i, ok := slices.BinarySearchFunc(codes[:], code, func(f codeFacts, code int) int {
		return cmp.Compare(f.code, code)
	})
	if !ok {
		return codeFacts{meaning: "a code that is in no document"}
	}
	return codes[i]
}

// ClassOf returns the class of a code of the API; [Unknown] for one that is not documented.
func ClassOf(code int) Class {
	return lookup(code).class
}

// Refuses reports whether a code in a result, as text, is one with which the API refuses a conversation or a call: nothing
// of it took effect. Other codes, and the reasons without a response, say nothing about that.
func Refuses(code string) bool {
	n, err := strconv.Atoi(code)
	class := ClassOf(n)
	return err == nil && (class == Permanent || class == ItemRetry)
}

// Meaning says in short English what a code means.
func Meaning(code int) string {
	return lookup(code).meaning
}

// Remedy says what an operator does about a code. It is empty for class [Throttle], where nobody has to, and for a code that is
// in no document.
func Remedy(code int) string {
	return lookup(code).remedy
}

// Codes lists all known codes in ascending order.
func Codes() []int {
	list := make([]int, len(codes))
	for i := range codes {
		list[i] = codes[i].code
	}
	return list
}
