// Package mesos holds the tests that the messages below it are those of Apache Mesos's v1 API.
//
// testdata/mesos-v1.tsv lists every field and enum value of Mesos: file, message, name, number, label,
// type, default, flags. The messages themselves are in the packages below, one per .proto file.
package mesos
