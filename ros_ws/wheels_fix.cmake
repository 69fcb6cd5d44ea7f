# ROS packages installed from PyPI wheels name include folders of the machine that built them
# (/opt/python/cp312-cp312/...), which CMake refuses. Once the top directory is processed, drop those
# from every imported target; the targets that find_package(Python3) made give the real ones.
# `valueguide ros build` passes this file to CMake; a ROS 2 from apt neither needs nor sees it.
function(valueguide_drop_foreign_includes)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(folders MATCHES "/opt/python/")
      list(FILTER folders EXCLUDE REGEX "^/opt/python/")
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${folders}")
    endif()
  endforeach()
endfunction()
cmake_language(DEFER DIRECTORY "${CMAKE_SOURCE_DIR}" CALL valueguide_drop_foreign_includes)
