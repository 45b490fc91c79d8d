package resources

import (
	"errors"
	"fmt"
	"strings"
)

// ValidateRole says what is wrong with the name of a role. "*" is valid: it stands for no
// role in particular. Components are separated by '/', as in "eng/backend".
func ValidateRole(role string) error {
	switch {
	case role == "":
		return errors.New("role: empty name")
	case role == "*":
		return nil
	case strings.HasPrefix(role, "/"):
		return fmt.Errorf("role %q: starts with a slash", role)
	case strings.HasSuffix(role, "/"):
		return fmt.Errorf("role %q: ends with a slash", role)
	}
	for _, part := range strings.Split(role, "/") {
		switch {
		case part == "":
			return fmt.Errorf("role %q: two slashes in a row", role)
		case part == "." || part == ".." || part == "*":
			return fmt.Errorf("role %q: component %q is reserved", role, part)
		case part[0] == '-':
			return fmt.Errorf("role %q: component %q starts with a hyphen", role, part)
		case strings.ContainsAny(part, "\t\n\v\f\r \b\x7f"):
			return fmt.Errorf("role %q: contains white space or a control character", role)
		}
	}
	return nil
}
