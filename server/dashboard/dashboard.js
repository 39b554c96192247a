<!doctype html><title>organism</title>
