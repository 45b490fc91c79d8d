// Package mesosjson is JSON as Apache Mesos writes and reads it for protobuf messages, which is not
// the JSON mapping of proto3.
//
// Writing: generated messages have AppendJSON, made by protoc-gen-mosaic-json on the Append helpers
// here. Field names are those of the proto; enums are words; bytes are base64; 64-bit integers are
// numbers; floats always have a decimal point and may be the bare words Infinity, -Infinity and NaN;
// maps are objects with sorted keys; empty lists and maps are left out; an unset optional field is
// left out unless the proto declares a default for it and does not call it deprecated; required fields
// are always there; google.protobuf.Duration is {"seconds":S,"nanos":N}. A message is one line, and
// valid JSON but for the three bare words.
//
// Reading: Unmarshal is as forgiving as Mesos about what clients send, strict about the grammar, and
// bounded in depth, size and number of values. It never panics, whatever the bytes.
//
// It does not know which messages are requests, nor HTTP; core/api says which media type is which.
package mesosjson
